//! Physical memory images: opening, finding roots, listing, explaining.
//!
//! [`Image::open`] takes what acquisition tools write and finds out by the content what it is:
//!
//! | content | physical addresses |
//! |---|---|
//! | raw memory | from 0, or [`Options::base`]; several files with [`Source::parse_list`] |
//! | an ELF core (32- or 64-bit, either byte order) | its segments' `p_paddr` |
//! | either of them compressed with zstd, any number of frames, windows up to 2 GiB | as above |
//!
//! Uncompressed files are mapped, not read; compressed ones are decompressed into an unnamed
//! temporary file. Do not change or shorten an image while it is open.
//!
//! ```
//! use slat_image::Options;
//!
//! let mut memory = vec![0; 0x2000];
//! memory[0x1008..0x1010].copy_from_slice(&0x4bb6_0000_0000_0067u64.to_le_bytes());
//! let image = Options::new().base(0x4000_0000).open_bytes("example", memory)?;
//!
//! assert_eq!(image.read_u64(0x4000_1008), Some(0x4bb6_0000_0000_0067));
//! assert_eq!(image.read_u64(0x4000_1000), Some(0));
//! // Beyond the image is not zero: it is not there.
//! assert_eq!(image.read_u64(0x4000_2000), None);
//! # Ok::<(), slat_image::OpenError>(())
//! ```
//!
//! To walk tables in an image, [`Image::read_only`] and [`Image::overlay`] make it a
//! [`slat::Memory`].

#![deny(unsafe_code)]

mod elf;
mod error;
pub mod explain;
mod image;
mod layout;
#[allow(unsafe_code)]
mod mapping;
mod memory;
mod open;
pub mod roots;
pub mod spec;
mod zst;

pub use error::{OpenError, Problem};
pub use image::{Image, Machine};
pub use memory::{Overlay, ReadOnly};
pub use open::{Options, Source};
