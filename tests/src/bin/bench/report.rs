//! What came of it: the figures, and their tables.

use serde::Serialize;

use crate::messages::{FLOOD, Traffic};
use crate::subjects::{Cell, Kind, Subject, Way, path_name};

/// One figure. `target/bench.json` is a list of these.
#[derive(Serialize)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    /// Median over the rounds.
    pub value: f64,
    /// Name of the figure it is compared with; its own for a baseline.
    pub baseline: String,
    /// Median over the rounds of value by baseline, both of the same round.
    pub ratio: f64,
    /// Half the distance between the quartiles, as a share of the median.
    pub spread: f64,
}

/// The figure of `subject` from its samples and its baseline's.
pub fn figure(subject: &Subject, samples: &[f64], baseline: &[f64]) -> Figure {
    let mut values = samples.to_vec();
    let mut ratios: Vec<f64> = samples
        .iter()
        .zip(baseline)
        .map(|(value, base)| value / base)
        .collect();
    values.sort_by(f64::total_cmp);
    ratios.sort_by(f64::total_cmp);
    let quartile = |sorted: &[f64], quarter: usize| sorted[sorted.len() * quarter / 4];
    let value = quartile(&values, 2);
    Figure {
        name: subject.name.clone(),
        unit: "ns/packet",
        value,
        baseline: subject.baseline.clone(),
        ratio: quartile(&ratios, 2),
        spread: (quartile(&values, 3) - quartile(&values, 1)) / 2.0 / value,
    }
}

/// The figures, by name.
pub struct Report(pub Vec<Figure>);

impl Report {
    pub fn find(&self, way: Way, cell: Cell) -> Option<&Figure> {
        let name = path_name(way, cell);
        self.0.iter().find(|figure| figure.name == name)
    }

    pub fn print(&self, subjects: &[Subject]) {
        self.print_programs(subjects);
        let (floods, cells): (Vec<Cell>, Vec<Cell>) = Cell::all()
            .into_iter()
            .filter(|cell| Way::ALL.iter().any(|way| self.find(*way, *cell).is_some()))
            .partition(|cell| matches!(cell.traffic, Traffic::Flood(_)));
        self.print_paths("PATH", &Way::ALL, &cells);
        let of_hairpin = |cell: &Cell| self.find(Way::Hairpin, *cell).is_some();
        let elsewhere: Vec<Cell> = cells.iter().copied().filter(of_hairpin).collect();
        self.print_paths("TO ANOTHER NODE", &Way::ELSEWHERE, &elsewhere);
        self.print_floods(&floods);
    }

    fn print_programs(&self, subjects: &[Subject]) {
        let is_program = |figure: &&Figure| {
            subjects.iter().any(|subject| {
                subject.name == figure.name && !matches!(subject.kind, Kind::Path(..))
            })
        };
        let mut figures = self.0.iter().filter(is_program).peekable();
        if figures.peek().is_none() {
            return;
        }
        println!(
            "{:<24} {:>10} {:>10} {:>12} {:>8}",
            "PROGRAM", "ns/packet", "over base", "packets/s", "SPREAD"
        );
        for figure in figures {
            println!(
                "{:<24} {:>10.1} {:>10.1} {:>12.0} {:>7.1}%",
                figure.name.trim_start_matches("program/"),
                figure.value,
                figure.value - figure.value / figure.ratio,
                1e9 / figure.value,
                figure.spread * 100.0
            );
        }
        println!();
    }

    /// Nanoseconds of the baseline, and by how much the others take longer.
    fn print_paths(&self, title: &str, ways: &[Way], cells: &[Cell]) {
        let [base, others @ ..] = ways else {
            return;
        };
        if cells.is_empty() {
            return;
        }
        print!("{title:<28} {:>12}", format!("{}, ns", base.name()));
        for way in others {
            print!(" {:>9}", way.name());
        }
        println!(" {:>7}", "SPREAD");
        for cell in cells {
            let figures = || ways.iter().filter_map(|way| self.find(*way, *cell));
            let spread = figures().map(|figure| figure.spread).fold(0.0, f64::max);
            let nanoseconds = self.find(*base, *cell).map(|figure| figure.value);
            print!("{:<28} {:>12}", cell.name(), number(nanoseconds, 1));
            for way in others {
                let ratio = self.find(*way, *cell).map(|figure| figure.ratio);
                print!(" {:>9}", number(ratio, 2));
            }
            println!(" {:>6.1}%", spread * 100.0);
        }
        println!();
    }

    /// How much of a flood one core takes, and what the gateways get of it.
    fn print_floods(&self, cells: &[Cell]) {
        for cell in cells {
            println!(
                "{:<28} {:>12} {:>12} {:>12}   one frame of {FLOOD} a message",
                cell.name(),
                "absorbed/s",
                "messages/s",
                "let in/s"
            );
            for way in Way::ALL {
                let Some(figure) = self.find(way, *cell) else {
                    continue;
                };
                let absorbed = 1e9 / figure.value;
                let messages = absorbed / f64::from(FLOOD);
                let through = match way {
                    Way::Steered => messages,
                    _ => absorbed,
                };
                println!(
                    "  {:<26} {absorbed:>12.0} {messages:>12.0} {through:>12.0}",
                    way.name()
                );
            }
            println!();
        }
    }
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.decimals$}"))
}
