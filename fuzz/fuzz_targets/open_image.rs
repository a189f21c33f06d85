//! Opening an image: no content may crash it, and what opens can be read everywhere.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slat_image::Options;

fuzz_target!(|content: &[u8]| {
    let options = Options::new().decompressed_limit(1 << 20);
    let Ok(image) = options.open_bytes("fuzz", content.to_vec()) else { return };
    let mut size = 0u64;
    let mut before: Option<u64> = None;
    for range in image.ranges() {
        let (start, last) = range.into_inner();
        assert!(start <= last && before.is_none_or(|before| before < start));
        before = Some(last);
        size += last - start + 1;
        let content = image.contiguous(start);
        assert_eq!(content.len() as u64, last - start + 1);
        for address in [start, last, last.saturating_sub(7), last.saturating_sub(3)] {
            let mut bytes = [0; 8];
            let whole = image.read(address, &mut bytes);
            assert_eq!(image.read_u64(address), whole.then_some(u64::from_le_bytes(bytes)));
        }
    }
    assert_eq!(image.size(), size);
});
