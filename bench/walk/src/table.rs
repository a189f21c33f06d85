//! Contenders, their turns, and the table of their speeds.

use std::time::Instant;

use crate::world::{BATCH, Stream};

/// Translates all addresses and returns the exclusive or of what they translate to.
pub type Turn<'a> = Box<dyn FnMut(&[u64]) -> u64 + 'a>;

/// One row.
pub struct Contender<'a> {
    /// The row's name.
    pub name: &'static str,
    /// Its work.
    pub turn: Turn<'a>,
}

/// How the table is made.
pub struct Run {
    /// Turns of each row and column; the fastest counts.
    pub turns: u32,
    /// Only rows whose name has this in it, or is what follows a `=`.
    pub only: Option<String>,
    /// Only tables whose title has this in it.
    pub tables: Option<String>,
}

impl Run {
    /// Lets the contenders take turns and prints one table. The first row is the floor that ratios
    /// are to.
    ///
    /// All rows must translate alike: a difference ends the benchmark.
    pub fn table(&self, title: &str, streams: &[Stream], contenders: &mut [Contender<'_>]) {
        if self.tables.as_ref().is_some_and(|tables| !title.contains(&**tables)) {
            return;
        }
        let wanted = |name: &str| match self.only.as_deref() {
            Some(only) => only.strip_prefix('=').map_or(name.contains(only), |only| name == only),
            None => true,
        };
        let expected: Vec<u64> =
            streams.iter().map(|stream| (contenders[0].turn)(&stream.addresses)).collect();
        let mut best = vec![vec![f64::MAX; streams.len()]; contenders.len()];
        for _ in 0..self.turns {
            for (row, contender) in contenders.iter_mut().enumerate() {
                if !wanted(contender.name) {
                    continue;
                }
                for (column, stream) in streams.iter().enumerate() {
                    let begun = Instant::now();
                    let got = (contender.turn)(&stream.addresses);
                    let nanoseconds = begun.elapsed().as_nanos() as f64;
                    assert_eq!(got, expected[column], "{title}: {} differs", contender.name);
                    let best = &mut best[row][column];
                    *best = best.min(nanoseconds / BATCH as f64);
                }
            }
        }
        print!("{title:<34}");
        for stream in streams {
            print!("{:>15}", stream.name);
        }
        println!();
        for (row, contender) in contenders.iter().enumerate().filter(|(_, c)| wanted(c.name)) {
            print!("  {:<32}", contender.name);
            for (mine, floor) in best[row].iter().zip(&best[0]) {
                let ratio = mine / floor;
                if row == 0 || *floor == f64::MAX {
                    print!("{:>8.1}       ", 1e3 / mine);
                } else if ratio < 99.95 {
                    print!("{:>8.1} {:>5.2}x", 1e3 / mine, ratio);
                } else {
                    print!("{:>8.1} {:>5.0}x", 1e3 / mine, ratio);
                }
            }
            println!();
        }
        println!();
    }
}
