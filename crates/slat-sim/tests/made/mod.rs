//! A guest of one batch.

use std::convert::Infallible;

use slat_trace::{Batch, Machine, Source};

/// A guest of one batch.
pub(crate) struct Made {
    pub machine: Machine,
    pub batch: Option<Batch>,
}

impl Source for Made {
    type Error = Infallible;

    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn next(&mut self, batch: &mut Batch) -> Result<bool, Infallible> {
        batch.clear();
        match self.batch.take() {
            Some(made) => {
                *batch = made;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}
