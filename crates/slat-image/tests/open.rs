//! Opening images: every format by its content, and every kind of damage by a clear error.

use std::io::Write;
use std::path::Path;

use slat_image::{Image, Machine, OpenError, Options, Problem, Source};

/// An ELF core with these segments (physical address, content), written field by field.
struct Core<'a> {
    wide: bool,
    big_endian: bool,
    /// Put the number of program headers into section header 0.
    extended: bool,
    machine: u16,
    segments: &'a [(u64, &'a [u8])],
}

impl Core<'_> {
    fn build(&self) -> Vec<u8> {
        let mut out = b"\x7fELF".to_vec();
        out.extend([if self.wide { 2 } else { 1 }, if self.big_endian { 2 } else { 1 }, 1]);
        out.resize(16, 0);
        let (header, program, section) = if self.wide { (64, 56, 64) } else { (52, 32, 40) };
        let sections = if self.extended { section } else { 0 };
        let count = self.segments.len() as u64;
        let number = if self.extended { 0xffff } else { count };
        self.put(&mut out, 2, 4);
        self.put(&mut out, 2, self.machine.into());
        self.put(&mut out, 4, 1);
        self.word(&mut out, 0); // e_entry
        self.word(&mut out, header + sections); // e_phoff
        self.word(&mut out, if self.extended { header } else { 0 }); // e_shoff
        self.put(&mut out, 4, 0);
        for field in [header, program, number, section, u64::from(self.extended), 0] {
            self.put(&mut out, 2, field);
        }
        if self.extended {
            let mut null = Vec::new();
            self.put(&mut null, 4, 0); // sh_name
            self.put(&mut null, 4, 0); // sh_type
            for _ in 0..4 {
                self.word(&mut null, 0); // sh_flags, sh_addr, sh_offset, sh_size
            }
            self.put(&mut null, 4, 0); // sh_link
            self.put(&mut null, 4, count); // sh_info
            null.resize(section as usize, 0);
            out.extend(null);
        }
        let mut offset = header + sections + program * count;
        for (address, content) in self.segments {
            let size = content.len() as u64;
            self.put(&mut out, 4, 1);
            if self.wide {
                self.put(&mut out, 4, 0);
            }
            for field in [offset, 0xdead_0000, *address, size, size] {
                self.word(&mut out, field);
            }
            if !self.wide {
                self.put(&mut out, 4, 0);
            }
            self.word(&mut out, 0);
            offset += size;
        }
        for (_, content) in self.segments {
            out.extend_from_slice(content);
        }
        out
    }

    fn put(&self, out: &mut Vec<u8>, size: usize, value: u64) {
        if self.big_endian {
            out.extend(&value.to_be_bytes()[8 - size..]);
        } else {
            out.extend(&value.to_le_bytes()[..size]);
        }
    }

    fn word(&self, out: &mut Vec<u8>, value: u64) {
        self.put(out, if self.wide { 8 } else { 4 }, value);
    }
}

const CORE: Core<'_> =
    Core { wide: true, big_endian: false, extended: false, machine: 62, segments: &[] };

fn open(content: &[u8]) -> Result<Image, OpenError> {
    Options::new().open_bytes("image", content.to_vec())
}

fn complaint(content: &[u8]) -> String {
    let text = open(content).expect_err("the image is damaged").to_string();
    assert!(text.starts_with("image: ") && !text.contains('\n'), "{text}");
    text
}

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

/// Memory that differs everywhere: the 8 bytes at `i * 8` hold `i * 8 + 1`.
fn pattern(size: u64) -> Vec<u8> {
    (0..size / 8).flat_map(|i| (i * 8 + 1).to_le_bytes()).collect()
}

#[test]
fn raw_memory_begins_at_the_base() {
    let image = open(&pattern(0x2000)).unwrap();
    assert_eq!(image.ranges().collect::<Vec<_>>(), [0..=0x1fff]);
    assert_eq!(image.read_u64(0x1ff8), Some(0x1ff9));
    assert_eq!(image.read_u32(0x1ffc), Some(0));
    assert_eq!(image.read_u64(0x1ff9), None);
    assert_eq!(image.read_u64(u64::MAX), None);

    let image = Options::new().base(0x4000_0000).open(file(&pattern(0x2000))).unwrap();
    assert_eq!(image.read_u64(0), None);
    assert_eq!(image.read_u64(0x3fff_fffc), None);
    assert_eq!(image.read_u64(0x4000_0008), Some(9));
    assert_eq!(image.page(0x4000_1000).unwrap()[..8], 0x1001u64.to_le_bytes());
    assert_eq!(image.page(0x4000_1008), None);
    assert_eq!(image.machine(), None);
}

#[test]
fn the_last_byte_of_the_address_space_can_be_in_an_image() {
    let image = Options::new().base(u64::MAX - 7).open_bytes("top", pattern(8)).unwrap();
    assert_eq!(image.ranges().collect::<Vec<_>>(), [u64::MAX - 7..=u64::MAX]);
    assert_eq!(image.read_u64(u64::MAX - 7), Some(1));
    assert_eq!(image.read_u64(u64::MAX - 6), None);
    let error = Options::new().base(u64::MAX - 6).open_bytes("top", pattern(8)).unwrap_err();
    assert!(matches!(error.problem, Problem::BeyondAddressSpace { .. }), "{error}");
}

#[test]
fn cores_of_both_classes_and_byte_orders_are_read() {
    let (low, high) = (pattern(0x100), pattern(0x40));
    for wide in [true, false] {
        for big_endian in [true, false] {
            for extended in [true, false] {
                let segments: &[(u64, &[u8])] = &[(0xf000_0000, &high), (0x1000, &low)];
                let core = Core { wide, big_endian, extended, machine: 183, segments };
                let image = open(&core.build()).unwrap();
                let ranges: Vec<_> = image.ranges().collect();
                assert_eq!(ranges, [0x1000..=0x10ff, 0xf000_0000..=0xf000_003f]);
                assert_eq!(image.machine(), Some(Machine::Aarch64));
                assert_eq!(image.read_u64(0x10f8), Some(0xf9));
                assert_eq!(image.read_u64(0x1100), None);
                assert_eq!(image.read_u64(0xf000_0038), Some(0x39));
                assert_eq!(image.read_u64(0xf000_0039), None);
            }
        }
    }
}

#[test]
fn more_segments_than_the_header_can_count_are_read() {
    let bytes = pattern(8);
    let segments: Vec<(u64, &[u8])> = (0..70_000).map(|i| (i * 16, &bytes[..])).collect();
    let image = open(&Core { extended: true, segments: &segments, ..CORE }.build()).unwrap();
    assert_eq!(image.ranges().len(), 70_000);
    assert_eq!(image.read_u64(69_999 * 16), Some(1));
    assert_eq!(image.read_u64(69_999 * 16 - 8), None);
}

#[test]
fn an_entry_across_two_neighbouring_segments_is_whole() {
    let bytes = pattern(0x20);
    let segments: &[(u64, &[u8])] =
        &[(0x1000, &bytes[..12]), (0x100c, &bytes[12..]), (0x3000, &bytes)];
    let image = open(&Core { segments, ..CORE }.build()).unwrap();
    // Neighbours in the file too: they are one range.
    assert_eq!(image.ranges().collect::<Vec<_>>(), [0x1000..=0x101f, 0x3000..=0x301f]);
    assert_eq!(image.read_u64(0x1008), Some(9));

    let segments: &[(u64, &[u8])] = &[(0x100c, &bytes[12..]), (0x1000, &bytes[..12])];
    let image = open(&Core { segments, ..CORE }.build()).unwrap();
    assert_eq!(image.ranges().collect::<Vec<_>>(), [0x1000..=0x100b, 0x100c..=0x101f]);
    assert_eq!(image.read_u64(0x1008), Some(9));
    assert_eq!(image.contiguous(0x1008).len(), 4);
}

#[test]
fn segments_that_agree_about_an_address_are_one() {
    let bytes = pattern(0x40);
    // The same 16 bytes in two copies, as /proc/vmcore has the kernel's text.
    let segments: &[(u64, &[u8])] = &[(0x1010, &bytes[0x10..0x20]), (0x1000, &bytes)];
    let image = open(&Core { segments, ..CORE }.build()).unwrap();
    assert_eq!(image.size(), 0x40);
    assert_eq!(image.read_u64(0x1018), Some(0x19));

    let mut other = bytes.clone();
    other[0x1f] ^= 1;
    let segments: &[(u64, &[u8])] = &[(0x1010, &other[0x10..0x20]), (0x1000, &bytes)];
    let text = complaint(&Core { segments, ..CORE }.build());
    assert!(text.contains("0x1010") && text.contains("another segment"), "{text}");
}

#[test]
fn compressed_images_are_images() {
    let memory = pattern(0x4000);
    let zeros = vec![0; 1 << 20];
    // Two frames with a skippable one between (RFC 8878, 3.1.2).
    let mut packed = zstd::encode_all(&zeros[..], 3).unwrap();
    packed.extend(b"\x5e\x2a\x4d\x18\x03\0\0\0abc");
    packed.extend(zstd::encode_all(&memory[..], 3).unwrap());
    let image = Options::new().base(0x1000).open(file(&packed)).unwrap();
    assert_eq!(image.ranges().collect::<Vec<_>>(), [0x1000..=0x10_4fff]);
    assert_eq!(image.read_u64(0x10_0ff8), Some(0));
    assert_eq!(image.read_u64(0x10_1008), Some(9));

    let core = Core { segments: &[(0x5000, &memory)], ..CORE }.build();
    let image = open(&zstd::encode_all(&core[..], 3).unwrap()).unwrap();
    assert_eq!(image.ranges().collect::<Vec<_>>(), [0x5000..=0x8fff]);
    assert_eq!(image.machine(), Some(Machine::X86));
}

#[test]
fn long_windows_are_accepted() {
    let memory = pattern(1 << 16);
    for log in [27, 31] {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.window_log(log).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&memory).unwrap();
        let image = open(&encoder.finish().unwrap()).unwrap();
        assert_eq!(image.read_u64(0xfff8), Some(0xfff9));
    }
}

#[test]
fn bombs_are_refused_with_the_limit() {
    let zeros = vec![0; 1 << 20];
    let honest = zstd::bulk::compress(&zeros, 3).unwrap();
    let silent = zstd::encode_all(&zeros[..], 3).unwrap();
    for (bomb, declared) in [(&honest, Some(1 << 20)), (&silent, None)] {
        let options = Options::new().decompressed_limit((1 << 20) - 1);
        let error = options.open_bytes("bomb", bomb.clone()).unwrap_err();
        let Problem::TooLarge { declared: found, limit } = error.problem else { panic!("{error}") };
        assert_eq!((found, limit), (declared, (1 << 20) - 1));
        assert!(Options::new().decompressed_limit(1 << 20).open_bytes("ok", bomb.clone()).is_ok());
    }
    // The limit is for all files together.
    let (a, b) = (file(&silent), file(&silent));
    let source = |file: &tempfile::NamedTempFile, address| Source {
        file: file.path().into(),
        address: Some(address),
    };
    let sources = [source(&a, 0), source(&b, 1 << 20)];
    assert!(Options::new().decompressed_limit(2 << 20).open_all(&sources).is_ok());
    assert!(Options::new().decompressed_limit((2 << 20) - 1).open_all(&sources).is_err());
}

#[test]
fn damaged_compression_is_told_from_a_short_file() {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(&pattern(1 << 20)).unwrap();
    let packed = encoder.finish().unwrap();
    for keep in [4, 5, packed.len() / 2, packed.len() - 1] {
        let text = complaint(&packed[..keep]);
        assert!(text.contains("cut short"), "{keep}: {text}");
    }
    for flip in [packed.len() / 2, packed.len() - 1] {
        let mut bad = packed.clone();
        bad[flip] ^= 0x10;
        let text = complaint(&bad);
        assert!(text.contains("corrupt"), "{flip}: {text}");
    }
    let mut tail = packed.clone();
    tail.extend(b"trailing");
    assert!(complaint(&tail).contains("corrupt"));
    assert!(complaint(&zstd::encode_all(&b""[..], 1).unwrap()).contains("empty"));
    assert!(complaint(&zstd::encode_all(&packed[..], 1).unwrap()).contains("once more"));
}

#[test]
fn what_is_no_image_is_refused() {
    assert!(complaint(b"").contains("empty"));
    assert!(complaint(b"\x1f\x8b\x08\0\0\0\0\0").contains("gzip"));
    assert!(complaint(b"EMiL\x01\0\0\0").contains("LiME"));
    let error = Image::open("/nonexistent/image").unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/image: cannot be read"), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let error = Image::open(directory.path()).unwrap_err();
    assert!(matches!(error.problem, Problem::NotAFile), "{error}");
    assert!(matches!(Image::open(file(b"")).unwrap_err().problem, Problem::Empty));
}

#[test]
fn absurd_core_headers_are_refused_by_field() {
    let memory = pattern(0x100);
    let good = Core { segments: &[(0x1000, &memory)], ..CORE }.build();
    assert!(open(&good).is_ok());
    // (offset, new bytes, what the error says)
    let cases: &[(usize, &[u8], &str)] = &[
        (4, &[7], "offset 0x4: unknown class 7"),
        (5, &[9], "offset 0x5: unknown byte order 9"),
        (16, &[2], "offset 0x10: type 2 is not a core"),
        (32, &[0xff; 8], "do not fit into the file"),
        (54, &[55], "offset 0x36: program headers of 55 bytes"),
        (56, &[0], "offset 0x38: no program headers"),
        (56, &[0xfe, 0xff], "65534 program headers at offset 0x40 do not fit"),
        (56, &[0xff, 0xff], "offset 0x28: the number of program headers is in section header 0"),
        (64, &[4], "no segment has memory"),
        (64 + 8, &[1, 2], "segment 0 (physical address 0x1000) needs the file up to offset 0x301"),
        (64 + 8, &[0xff; 8], "cut short"),
        (64 + 24, &[0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "runs past the end"),
        (64 + 32, &[0; 8], "no segment has memory"),
        (64 + 32, &[0xff; 8], "cut short"),
    ];
    for (offset, bytes, expected) in cases {
        let mut bad = good.clone();
        bad[*offset..offset + bytes.len()].copy_from_slice(bytes);
        let text = complaint(&bad);
        assert!(text.contains(expected), "{offset}: {text}");
    }
    // Extended numbering whose section header is not there.
    let mut bad = good.clone();
    bad[56..58].fill(0xff);
    bad[40..48].fill(0xff);
    assert!(complaint(&bad).contains("there is none at"));
    bad[40..48].copy_from_slice(&0x1000u64.to_le_bytes());
    assert!(complaint(&bad).contains("offset 0x102c: lies outside the file"));
    for keep in [4, 15, 16, 40, 63, 64, 100, good.len() - 1] {
        complaint(&good[..keep]);
    }
    let process: &[(u64, &[u8])] = &[(0, &memory), (0, &memory)];
    assert!(complaint(&Core { segments: process, ..CORE }.build()).contains("of a process"));
}

#[test]
fn several_files_make_one_image() {
    let (low, high) = (file(&pattern(0x1000)), file(&pattern(0x1000)));
    let list =
        |second: &str| format!("{}@0,{}@{second}", low.path().display(), high.path().display());
    let open = |list: &str| Options::new().open_all(&Source::parse_list(list.as_ref())?);
    let image = open(&list("0x100000000")).unwrap();
    assert_eq!(image.ranges().collect::<Vec<_>>(), [0..=0xfff, 0x1_0000_0000..=0x1_0000_0fff]);
    assert_eq!(image.read_u64(0x1_0000_0008), Some(9));
    // Next to each other: an unaligned read goes across.
    let image = open(&list("4096")).unwrap();
    assert_eq!(image.read_u64(0xffc), Some(1 << 32));

    let error = open(&list("0xfff")).unwrap_err().to_string();
    assert!(error.contains("claims physical address 0xfff"), "{error}");
    assert!(error.contains(&low.path().display().to_string()), "{error}");
    let error = open(&list("0xfgh")).unwrap_err().to_string();
    assert!(error.contains("'0xfgh' is no address"), "{error}");
    let error = open("a.raw@0,b.raw").unwrap_err().to_string();
    assert!(error.contains("'b.raw' has no address"), "{error}");

    let error =
        Options::new().base(1).open_all(&[Source { file: low.path().into(), address: Some(0) }]);
    assert!(matches!(error.unwrap_err().problem, Problem::BaseAndAddress { .. }));
    let core = file(&Core { segments: &[(0, &pattern(8))], ..CORE }.build());
    let error = Options::new().base(0x1000).open(&core).unwrap_err();
    assert!(matches!(error.problem, Problem::AddressForCore(0x1000)), "{error}");
}

#[test]
fn a_file_may_have_an_at_sign_in_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let odd = directory.path().join("dump@0x1000,old");
    std::fs::write(&odd, pattern(0x10)).unwrap();
    let sources = Source::parse_list(odd.as_os_str()).unwrap();
    assert_eq!(sources, [Source { file: odd, address: None }]);
    let plain = Source::parse_list("no-address.raw".as_ref()).unwrap();
    assert_eq!(plain[0].file, Path::new("no-address.raw"));
}

/// Whatever overlaps, a byte of the image is what the segments that have it say.
mod overlapping_segments {
    use proptest::prelude::*;

    use super::{CORE, Core, open};

    proptest! {
        #[test]
        fn read_as_the_segments_say(
            spans in prop::collection::vec((0u64..48, 1u64..24), 1..7),
            flip in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
        ) {
            let mut contents: Vec<(u64, Vec<u8>)> = spans
                .iter()
                .map(|&(start, size)| {
                    (0x1000 + start, (start..start + size).map(|i| i as u8 + 1).collect())
                })
                .collect();
            if let Some((which, at)) = flip {
                let content = &mut which.get_mut(&mut contents).1;
                *at.get_mut(content) ^= 0x80;
            }
            // The naive description: each byte and whether all agree on it.
            let mut expected: [Option<u8>; 0x60] = [None; 0x60];
            let mut agree = true;
            for (start, content) in &contents {
                for (i, &byte) in content.iter().enumerate() {
                    let slot = &mut expected[(start - 0x1000) as usize + i];
                    agree &= slot.is_none_or(|old| old == byte);
                    *slot = Some(byte);
                }
            }
            let segments: Vec<(u64, &[u8])> =
                contents.iter().map(|(start, content)| (*start, &content[..])).collect();
            let file = Core { segments: &segments, ..CORE }.build();
            match open(&file) {
                Ok(image) => {
                    prop_assert!(agree);
                    for (i, &byte) in expected.iter().enumerate() {
                        let read = image.read_array::<1>(0x1000 + i as u64).map(|[byte]| byte);
                        prop_assert_eq!(read, byte);
                    }
                    let size = expected.iter().flatten().count() as u64;
                    prop_assert_eq!(image.size(), size);
                }
                Err(error) => prop_assert!(!agree, "{}", error),
            }
        }
    }
}

/// Damage anywhere: opening ends, without a panic, and what opens can be read.
mod damage {
    use proptest::prelude::*;

    use super::{CORE, Core, Options, pattern};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn never_panics(
            wide: bool,
            big_endian: bool,
            extended: bool,
            packed: bool,
            damage in prop::collection::vec((0usize..400, any::<u8>()), 0..6),
            keep in 0usize..800,
        ) {
            let memory = pattern(0x100);
            let segments: &[(u64, &[u8])] = &[(0x1000, &memory), (0x1080, &memory[0x80..])];
            let core = Core { wide, big_endian, extended, segments, ..CORE };
            let mut file = core.build();
            if packed {
                file = zstd::encode_all(&file[..], 1).unwrap();
            }
            for (at, byte) in damage {
                if let Some(slot) = file.get_mut(at) {
                    *slot = byte;
                }
            }
            file.truncate(keep);
            match Options::new().decompressed_limit(1 << 20).open_bytes("damaged", file) {
                Ok(image) => {
                    for range in image.ranges() {
                        let mut bytes = vec![0; (range.end() - range.start() + 1) as usize];
                        prop_assert!(image.read(*range.start(), &mut bytes));
                    }
                }
                Err(error) => prop_assert!(!error.to_string().contains('\n')),
            }
        }
    }
}
