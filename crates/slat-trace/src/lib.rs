//! Recordings of real guests, and the readers of other tools' traces.
