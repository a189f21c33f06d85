//! The readers of other tools' traces, from outside.

mod counts;
mod damage;
mod damaged_samples;
mod formats;
mod recordings;
mod runs;
mod samples;
mod tables;
