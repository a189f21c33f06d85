//! Why an edit stopped.

use core::fmt;

use super::encode::Refused;

/// Why an edit stopped. Everything before the address that it names has changed as asked,
/// nothing at or after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The range is empty, ends before it begins, or is not a multiple of the smallest page.
    Misaligned {
        /// The start or size that is not.
        value: u64,
    },
    /// The range leaves the format's input width, or the range that the cursor was made for.
    OutsideInput {
        /// The first byte that does.
        at: u64,
    },
    /// The output range leaves the processor's physical address width.
    OutsideOutput {
        /// The output address that does.
        output: u64,
    },
    /// Something is there already; mapping never replaces. Unmap first, or remap.
    Occupied {
        /// Where.
        at: u64,
        /// The entry.
        entry: u64,
    },
    /// The operation acts on leaves, and there is something else.
    Reserved {
        /// Where.
        at: u64,
        /// The entry.
        entry: u64,
    },
    /// The leaf belongs to a contiguous or NAPOT group whose other entries say something else, and
    /// only a part of it is asked for.
    Grouped {
        /// Where.
        at: u64,
        /// The entry.
        entry: u64,
    },
    /// The leaf says what no smaller pages under a table of these can: a section of another domain
    /// than the format's, or one with `PXN` or `NS` (Arm's short descriptors). All of it can be
    /// changed, a part of it cannot.
    Indivisible {
        /// Where.
        at: u64,
        /// The leaf.
        entry: u64,
    },
    /// Somebody is remaking the entry just now: try again.
    Frozen {
        /// Where.
        at: u64,
    },
    /// The frame source had no frame of this size. Give it some and go on from here.
    NoFrame {
        /// What the table was for.
        at: u64,
        /// Its size and alignment in bytes.
        bytes: u64,
    },
    /// No entry or root register of this format can point at the frame that the source gave, or at
    /// the root that was to be adopted: its address has more bits, or a root is not aligned as the
    /// register wants it. The source has it back, and gave no other that would do (three are asked
    /// for); give it lower ones.
    OutOfReach {
        /// Address of the frame.
        frame: u64,
    },
    /// A table lies outside the table memory that was lent.
    NotLent {
        /// Address of the table.
        table: u64,
    },
    /// Attributes that the format cannot encode.
    Refused(Refused),
    /// The entry layout is not one that can be edited (big-endian tables; 32-bit ones as
    /// a format of 64-bit entries).
    Layout,
    /// The gather was given out for an invalidation and did not come back by
    /// [`Cursor::resume`](super::Cursor::resume).
    AwaitingInvalidation,
    /// The proof is of a gather that another cursor gave out.
    Foreign,
    /// No slot was lent in which the operation could note what it must: a detached table, or an
    /// entry to be remade after an invalidation.
    NoSlot,
    /// The frame source does not count the entries that point at a table, so that tables cannot be
    /// shared.
    Uncounted,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Misaligned { value } => {
                write!(f, "{value:#x} is not a positive multiple of the smallest page")
            }
            Error::OutsideInput { at } => {
                write!(f, "{at:#x} lies outside the input width or the cursor's range")
            }
            Error::OutsideOutput { output } => {
                write!(f, "output {output:#x} does not fit the physical address width")
            }
            Error::Occupied { at, entry } => {
                write!(f, "{at:#x} is occupied (entry {entry:#x}); unmap or remap it")
            }
            Error::Reserved { at, entry } => {
                write!(f, "{at:#x} has a reserved entry ({entry:#x}); unmap it")
            }
            Error::Grouped { at, entry } => {
                write!(f, "{at:#x} is in a group that does not say one thing (entry {entry:#x})")
            }
            Error::Indivisible { at, entry } => {
                write!(
                    f,
                    "{at:#x} is in a page that no smaller ones can stand for (entry {entry:#x})"
                )
            }
            Error::Frozen { at } => write!(f, "{at:#x} is being remade; try again"),
            Error::NoFrame { at, bytes } => {
                write!(f, "no frame of {bytes} bytes for a table at {at:#x}; add frames and go on")
            }
            Error::OutOfReach { frame } => {
                write!(
                    f,
                    "no entry of this format can point at the frame at {frame:#x}; add lower ones"
                )
            }
            Error::NotLent { table } => {
                write!(f, "the table at {table:#x} is not in the table memory that was lent")
            }
            Error::Refused(refused) => refused.fmt(f),
            Error::Layout => f.write_str("tables of this entry layout cannot be edited"),
            Error::AwaitingInvalidation => {
                f.write_str("the gather has not come back; resume the cursor with its proof")
            }
            Error::Foreign => f.write_str("the proof is of another cursor's gather"),
            Error::NoSlot => f.write_str("the gather has no slots for tables or remade entries"),
            Error::Uncounted => {
                f.write_str("the frame source keeps no counts of tables; use Counted")
            }
        }
    }
}

impl core::error::Error for Error {}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        Error::Refused(refused)
    }
}
