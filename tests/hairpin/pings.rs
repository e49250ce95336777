//! Pings that go on while something happens, and what became of them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::node::{Node, Process};
use nix::sys::signal::Signal;

/// Long enough for a client to find out that its session is lost, which takes
/// it 15 s, and to try a few times.
const TIMEOUT: Duration = Duration::from_secs(60);

/// 100 pings a second.
pub struct Pings(Process);

impl Pings {
    /// From `node` to `address`, which answers.
    pub fn start(node: &Node, address: &str) -> Result<Self> {
        // A log of its own: they are appended to.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("pings-{}", NUMBER.fetch_add(1, Relaxed));
        let mut command = node.command("ping");
        command.args(["-n", "-D", "-i", "0.01", address]);
        let pings = Self(node.start(&name, command)?);
        pings.await_answers(20)?;
        Ok(pings)
    }

    /// Waits for `more` answers to pings that are sent from now on.
    pub fn await_answers(&self, more: usize) -> Result<()> {
        let start = Instant::now();
        // Whatever was under way has answered or is lost by then.
        let from = self.answers().0.last().map_or(0, |(seq, _)| seq + 100);
        let from = if from == 100 { 0 } else { from };
        loop {
            let answers = self.answers().0;
            if answers.iter().filter(|(seq, _)| *seq >= from).count() >= more {
                return Ok(());
            }
            ensure!(
                start.elapsed() < TIMEOUT,
                "no {more} answers after ping {from}, but {} in all",
                answers.len()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends them.
    pub fn stop(mut self) -> Result<Answers> {
        self.0.signal(Signal::SIGINT)?;
        self.0.wait()?;
        let answers = self.answers();
        answers.0.first().context("nothing was answered")?;
        Ok(answers)
    }

    fn answers(&self) -> Answers {
        Answers::read(&self.0.log())
    }
}

/// What was answered: the pings' numbers, and when.
pub struct Answers(Vec<(usize, f64)>);

impl Answers {
    fn read(log: &str) -> Self {
        let answer = |line: &str| {
            let (time, rest) = line.strip_prefix('[')?.split_once("] ")?;
            let (_, rest) = rest.split_once("icmp_seq=")?;
            // Neither an error nor a line that is not written to its end.
            let (number, rest) = rest.split_once(" ttl=")?;
            rest.ends_with("ms")
                .then_some((number.parse().ok()?, time.parse().ok()?))
        };
        Self(log.lines().filter_map(answer).collect())
    }

    /// Pings without an answer, before the last one that has one.
    pub fn lost(&self) -> usize {
        let mut numbers: Vec<usize> = self.0.iter().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.last().map_or(0, |last| last - numbers.len())
    }

    /// The longest time between two answers.
    pub fn silence(&self) -> Duration {
        let pairs = self.0.windows(2);
        let longest = pairs.map(|pair| pair[1].1 - pair[0].1).fold(0.0, f64::max);
        Duration::from_secs_f64(longest)
    }

    /// That no more is lost than what the balancer, as it forgets a flow, takes
    /// for nobody's: answers that are under way. `times` that it did.
    pub fn lost_in_flight(&self, times: usize) -> Result<()> {
        let lost = self.lost();
        ensure!(lost <= 10 * times, "{lost} pings were lost");
        Ok(())
    }
}

#[test]
fn what_was_lost_is_counted() {
    let log = "PING 10.97.1.1\n\
        [10.5] 64 bytes from 10.97.1.1: icmp_seq=1 ttl=62 time=1 ms\n\
        [10.6] 64 bytes from 10.97.1.1: icmp_seq=2 ttl=62 time=1 ms\n\
        [11.0] From 10.42.0.1 icmp_seq=4 Destination Host Unreachable\n\
        [12.75] 64 bytes from 10.97.1.1: icmp_seq=6 ttl=62 time=1 ms\n\
        [12.8] 64 bytes from 10.97.1.1: icmp_seq=5 ttl=62 time=1 ms\n\
        [12.9] 64 bytes from 10.97.1.1: icmp_seq=7 ttl";
    let answers = Answers::read(log);
    assert_eq!(answers.lost(), 2);
    assert_eq!(answers.silence(), Duration::from_millis(2150));
}
