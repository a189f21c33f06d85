//! Zstandard files (RFC 8878), decompressed into an unnamed temporary file.
//!
//! A file, so that an image larger than the machine's memory can be opened; unnamed, so that it is
//! gone with the process however that ends; and sparse, since most of a memory image is zero.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use bytes::Bytes;

use crate::error::Problem;
use crate::mapping;

/// The largest window that is accepted, as a power of two: all that `zstd --long=31` can write.
/// The decompressor's memory is the smaller of the window and of what was decompressed.
const WINDOW_LOG_MAX: u32 = 31;

/// Zeros are left out of the temporary file in units of this many bytes.
const CHUNK: usize = 128 * 1024;

/// Does `bytes` begin with a zstd frame or a skippable one (RFC 8878, 3.1)?
pub(crate) fn is_zstd(bytes: &[u8]) -> bool {
    match bytes.first_chunk().map(|magic| u32::from_le_bytes(*magic)) {
        Some(magic) => magic == 0xfd2f_b528 || magic & 0xffff_fff0 == 0x184d_2a50,
        None => false,
    }
}

/// Decompresses all frames of `compressed`, at most `limit` bytes.
pub(crate) fn decompress(compressed: &[u8], limit: u64) -> Result<Bytes, Problem> {
    // A header may say how much follows; a bomb that is honest is refused before any work.
    if let Ok(Some(declared)) = zstd::zstd_safe::get_frame_content_size(compressed)
        && declared > limit
    {
        return Err(Problem::TooLarge { declared: Some(declared), limit });
    }
    let file = tempfile::tempfile().map_err(Problem::Temporary)?;
    let file = fill(file, compressed, limit)?;
    mapping::map(&file).map_err(Problem::Io)
}

/// Writes what `compressed` holds to `file`.
fn fill(mut file: File, compressed: &[u8], limit: u64) -> Result<File, Problem> {
    let mut decoder =
        zstd::stream::read::Decoder::with_buffer(Cursor::new(compressed)).map_err(Problem::Io)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(Problem::Io)?;
    let mut chunk = vec![0; CHUNK];
    let mut written = 0u64;
    loop {
        let got = match decoder.read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let read = decoder.get_ref().position();
                return Err(match error.kind() {
                    io::ErrorKind::UnexpectedEof => Problem::CompressedTruncated { read, written },
                    _ => Problem::CompressedCorrupt { read, written, reason: error.to_string() },
                });
            }
        };
        if got as u64 > limit - written {
            return Err(Problem::TooLarge { declared: None, limit });
        }
        let data = &chunk[..got];
        if data.iter().all(|&byte| byte == 0) {
            file.seek(SeekFrom::Current(got as i64)).map_err(Problem::Temporary)?;
        } else {
            file.write_all(data).map_err(Problem::Temporary)?;
        }
        written += got as u64;
    }
    file.set_len(written).map_err(Problem::Temporary)?;
    Ok(file)
}
