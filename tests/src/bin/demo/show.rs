//! What the audience sees: steps, commands, their output, and what was checked.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

pub struct Show {
    started: Instant,
    /// On a terminal, for how long the command has run; elsewhere nothing.
    bar: ProgressBar,
    checks: Vec<Check>,
}

struct Check {
    holds: bool,
    what: String,
    expected: String,
    seen: String,
}

impl Show {
    pub fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("          {spinner} {elapsed}")
                .expect("a valid template"),
        );
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            started: Instant::now(),
            bar,
            checks: Vec::new(),
        }
    }

    pub fn say(&self, line: &str) {
        // A reader that has gone, as `head` does, is no reason to stop.
        let print = || drop(writeln!(io::stdout(), "{line}"));
        self.bar.suspend(print);
    }

    /// Begins a step.
    pub fn step(&self, what: &str) {
        self.say(&format!(
            "\n{:>5.1}s  {what}",
            self.started.elapsed().as_secs_f32()
        ));
        self.bar.reset_elapsed();
    }

    /// Names a command that is about to run on a node.
    pub fn command(&self, node: &str, command: &str) {
        self.say(&format!("        {node}# {command}"));
        self.bar.reset_elapsed();
    }

    /// What a command printed.
    pub fn output(&self, text: &str) {
        for line in text.trim_end().lines() {
            let line = format!("          {}", line.replace('\t', "    "));
            self.say(line.trim_end());
        }
    }

    /// Notes whether what was `seen` is what it should be.
    pub fn check(&mut self, holds: bool, what: &str, expected: &str, seen: &str) {
        let check = Check {
            holds,
            what: what.into(),
            expected: expected.into(),
            seen: seen.into(),
        };
        self.say(&format!("      {} {what}", check.mark()));
        self.checks.push(check);
    }

    /// Lists all that was checked, if anything was.
    pub fn summary(&self) {
        self.bar.finish_and_clear();
        if self.checks.is_empty() {
            return;
        }
        let width = self.checks.iter().map(|check| check.what.chars().count());
        let width = width.max().unwrap_or(0);
        self.say("\nWhat was seen");
        for check in &self.checks {
            let Check { what, seen, .. } = check;
            let mark = check.mark();
            self.say(&match check.holds {
                true => format!("  {mark} {what:<width$}  {seen}"),
                false => format!(
                    "  {mark} {what:<width$}  expected {}; saw {seen}",
                    check.expected
                ),
            });
        }
        let held = self.checks.iter().filter(|check| check.holds).count();
        self.say(&format!(
            "\n{held} of {} as expected, in {:.1} s",
            self.checks.len(),
            self.started.elapsed().as_secs_f32()
        ));
    }

    pub fn all_held(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }
}

impl Check {
    fn mark(&self) -> char {
        if self.holds { '✓' } else { '✗' }
    }
}
