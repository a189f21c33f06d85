//! Asks hardware models that nobody here wrote.
