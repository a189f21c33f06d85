//! The readers of other tools' traces, from outside.

mod counts;
mod damage;
mod formats;
mod recordings;
mod samples;
mod tables;
