//! How much the models of all vCPUs together may keep, so that a file of many vCPUs that lies in each of
//! them costs no more memory than one of a single vCPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// There are more blocks of instructions or accesses than a file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// What is in use of something, by all who hold it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Used(Arc<AtomicUsize>);

impl Used {
    /// Takes `count` more, if all together then have at most `most`.
    pub(super) fn take(&self, count: usize, most: usize) -> Result<(), NoRoom> {
        let all = self.0.fetch_add(count, Ordering::Relaxed) + count;
        if all > most {
            self.give_back(count);
            return Err(NoRoom);
        }
        Ok(())
    }

    pub(super) fn give_back(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    /// How much is in use.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What all models of a machine may keep of their memory while they have no use for it: sites, and places.
const KEPT: usize = 1 << 20;

/// What the models of one machine share.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// The part of one model of what may be kept.
    pub(super) kept: usize,
    /// Of sites, forgotten at each block of the file.
    pub(crate) sites: Used,
    /// Of places for blocks of instructions, kept until definitions start again.
    pub(crate) places: Used,
}

impl Room {
    /// For a machine of `vcpus` vCPUs.
    pub(crate) fn of(vcpus: u8) -> Self {
        let kept = KEPT / usize::from(vcpus.max(1));
        Self { kept, sites: Used::default(), places: Used::default() }
    }
}

/// Empties a buffer, and gives its memory back where it is more than may be kept.
pub(super) fn empty<T>(buffer: &mut Vec<T>, kept: usize) {
    buffer.clear();
    if buffer.capacity() > kept {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_has_taken_is_missing_to_the_others_until_it_is_given_back() {
        let one = Room::of(2);
        let other = one.clone();
        assert_eq!(one.sites.take(6, 10), Ok(()));
        assert_eq!(other.sites.take(5, 10), Err(NoRoom));
        assert_eq!(other.sites.take(4, 10), Ok(()));
        assert_eq!((one.sites.count(), one.places.count()), (10, 0));
        one.sites.give_back(6);
        assert_eq!(other.sites.take(6, 10), Ok(()));
    }
}
