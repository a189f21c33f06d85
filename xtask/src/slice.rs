//! `cargo xtask slice`: cut a test fixture out of a memory image with guests.
//!
//! The fixture is an ordinary zstd-compressed ELF core, with a segment for each run of pages that
//! were kept: the guests' memory, their stage-2 tables, and the pages that name a stage-2 root (the
//! control blocks are among them). Everything else is a hole. Guest memory is almost all zeros, so
//! that whole pages compress to a few bytes each and nothing needs to be cut short.
//!
//! The walks here are written from the manuals' tables, bit by bit, without the `slat` crate: what
//! they find is compared with the truth, and the fixtures can then be used to test that crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use slat_image::{Image, Options};

/// Cuts IMAGE down to what its guests' translations need.
#[derive(clap::Args)]
#[command(after_help = "Example:
  cargo xtask slice npt-tdp.raw.zst --truth npt-tdp.truth.json --out fixtures/npt-tdp.slice
  cargo xtask slice arm-nvhe.raw.zst --truth arm-nvhe.truth.json --out fixtures/arm-nvhe.slice \\
      --root 0x454ea000 --root 0x431fe000")]
pub(crate) struct Args {
    /// The memory image: raw, zstd-compressed or an ELF core
    image: PathBuf,
    /// What is true of it: memory slots, backed runs, registers
    #[arg(long)]
    truth: PathBuf,
    /// The fixture to write; its truth goes beside it, with the extension truth.json
    #[arg(long)]
    out: PathBuf,
    /// The stage-2 root of each guest, in the truth's order, where the truth does not name them
    #[arg(long = "root", value_name = "ADDR", value_parser = number)]
    roots: Vec<u64>,
}

const PAGE: u64 = 4096;

/// The stage-2 formats that KVM's guests here have, all of 512-entry tables of 8-byte entries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Npt,
    Ept,
    /// 4 KiB granule, 40-bit IPA: starts at Arm level 1 in two concatenated tables.
    Arm,
}

/// What a walk of all of one root found.
#[derive(Default)]
struct Tree {
    tables: BTreeSet<u64>,
    /// Guest page to system page.
    pages: BTreeMap<u64, u64>,
    /// Entries that translate nothing and are not empty: guest address, entry.
    odd: Vec<(u64, u64)>,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let truth = fs::read_to_string(&args.truth)
        .with_context(|| format!("cannot read {}", args.truth.display()))?;
    let truth: Value = serde_json::from_str(&truth)
        .with_context(|| format!("{} is not valid JSON", args.truth.display()))?;
    let variant = text(&truth, "variant")?;
    let format = match variant {
        _ if variant.starts_with("npt") => Format::Npt,
        _ if variant.starts_with("ept") => Format::Ept,
        _ if variant.starts_with("arm") => Format::Arm,
        _ => bail!("variant '{variant}' is none of npt-*, ept-*, arm-*"),
    };
    let base = truth["phys_base"].as_u64().context("the truth has no phys_base")?;
    let image = Options::new().base(base).open(&args.image)?;
    let guests = truth["vms"].as_array().context("the truth has no vms")?;
    let roots = if args.roots.is_empty() { traced_roots(&truth)? } else { args.roots };
    ensure!(
        roots.len() == guests.len(),
        "{} guests and {} roots: give one --root a guest",
        guests.len(),
        roots.len()
    );

    let mut keep = BTreeSet::new();
    let mut kept_guests = Vec::new();
    for (guest, &root) in guests.iter().zip(&roots) {
        let name = text(guest, "name")?;
        let tree = stage2(&image, format, root)?;
        let expected = runs(guest)?;
        let agree = tree.pages.iter().filter(|(gpa, spa)| expected.get(gpa) == Some(spa)).count();
        println!(
            "{name}: root {root:#x}, {} tables, {} pages; {agree} of the truth's {} agree",
            tree.tables.len(),
            tree.pages.len(),
            expected.len()
        );
        ensure!(
            agree == expected.len() && agree == tree.pages.len(),
            "the walk of guest {name} and the truth differ: wrong root, or the truth of another image"
        );
        for (gpa, entry) in &tree.odd {
            println!("{name}: {gpa:#x} has the entry {entry:#x}, which translates nothing");
        }
        let stage1 = stage1(&image, format, guest, &tree)?;
        println!("{name}: {} stage-1 tables", stage1.len());

        let naming = pages_naming(&image, format, root);
        let block = control_block(&image, format, root, &naming);
        for page in &naming {
            let what = if Some(*page) == block { ": its control block" } else { "" };
            println!("{name}: page {page:#x} names the root{what}");
        }
        ensure!(
            format == Format::Arm || block.is_some(),
            "no control block names the root of guest {name}"
        );
        keep.extend(tree.pages.values());
        keep.extend(tree.tables);
        keep.extend(naming);

        let mut kept = guest.clone();
        kept["root"] = json!(format!("{root:#x}"));
        kept["control_block"] = json!(block.map(|block| format!("{block:#x}")));
        kept_guests.push(kept);
    }

    let core = core(&image, format, &keep)?;
    let mut packed = zstd::Encoder::new(Vec::new(), 22)?;
    packed.window_log(27)?;
    packed.long_distance_matching(true)?;
    packed.include_checksum(true)?;
    packed.set_pledged_src_size(Some(core.len() as u64))?;
    packed.write_all(&core)?;
    let packed = packed.finish()?;
    write(&args.out, &packed)?;
    println!("{}: {} pages, {} bytes", args.out.display(), keep.len(), packed.len());

    let out = args.out.with_extension("truth.json");
    let name = args.out.file_name().context("--out names no file")?.to_string_lossy();
    let mut kept = json!({
        "variant": variant,
        "image": name,
        "phys_base": base,
        "phys_size": truth["phys_size"],
        "kernel": truth["kernel"],
        "vms": kept_guests,
    });
    if let Some(registers) = truth.get("el2_registers") {
        kept["el2_registers"] = registers.clone();
    }
    let mut text = serde_json::to_vec(&kept)?;
    text.push(b'\n');
    write(&out, &text)?;
    println!("{}: {} bytes", out.display(), text.len());
    Ok(())
}

/// The roots that the kernel's own tracing named, one a process, in the order of their guests.
fn traced_roots(truth: &Value) -> Result<Vec<u64>> {
    let missing = "the truth does not name the roots: give one --root a guest";
    let traced = truth["roots"].as_array().context(missing)?;
    let guests = truth["vms"].as_array().context(missing)?;
    let root_of = |guest: &Value| {
        let pid = guest["state"]["pid"].as_str()?.parse::<u64>().ok()?;
        traced.iter().filter(|root| root["pid"] == pid).find_map(|root| {
            let value = root["value"].as_str()?.strip_prefix("root=")?;
            number(value.split(' ').next()?).ok()
        })
    };
    guests.iter().map(|guest| root_of(guest).context(missing)).collect()
}

/// Every page that the truth says a guest has, and where it lies.
fn runs(guest: &Value) -> Result<BTreeMap<u64, u64>> {
    let wrong = "a run of the truth is not [gpa, spa, pages]";
    let mut pages = BTreeMap::new();
    for run in guest["runs"].as_array().context("a guest of the truth has no runs")? {
        let gpa = number(run[0].as_str().context(wrong)?).map_err(anyhow::Error::msg)?;
        let spa = number(run[1].as_str().context(wrong)?).map_err(anyhow::Error::msg)?;
        for page in 0..run[2].as_u64().context(wrong)? {
            pages.insert(gpa + page * PAGE, spa + page * PAGE);
        }
    }
    Ok(pages)
}

/// Walks everything below a stage-2 root.
fn stage2(image: &Image, format: Format, root: u64) -> Result<Tree> {
    let mut tree = Tree::default();
    match format {
        Format::Npt | Format::Ept => table(image, format, root, 3, 0, &mut tree)?,
        Format::Arm => {
            table(image, format, root, 2, 0, &mut tree)?;
            table(image, format, root + PAGE, 2, 1 << 39, &mut tree)?;
        }
    }
    Ok(tree)
}

/// Walks one table, whose first entry is for guest address `gpa`. Level 0 has the 4 KiB leaves.
fn table(
    image: &Image,
    format: Format,
    address: u64,
    level: u32,
    gpa: u64,
    tree: &mut Tree,
) -> Result<()> {
    ensure!(tree.tables.insert(address), "table {address:#x} is used twice");
    let shift = 12 + 9 * level;
    for index in 0..512 {
        let at = address + index * 8;
        let entry = image.read_u64(at).with_context(|| format!("no memory at table {at:#x}"))?;
        let gpa = gpa | index << shift;
        // Present, and what KVM marks MMIO by: AMD APM vol. 2, 5.3 and 15.25; Intel SDM vol. 3,
        // 29.3.2 and 29.3.3.1 (write without read); Arm ARM D8.3.
        let (valid, leaf, output) = match format {
            Format::Npt => {
                let valid = entry & 1 != 0 && entry & 1 << 51 == 0;
                (valid, level == 0 || entry & 0x80 != 0, entry & 0x000f_ffff_ffff_f000)
            }
            Format::Ept => {
                let valid = entry & 7 != 0 && entry & 3 != 2;
                (valid, level == 0 || entry & 0x80 != 0, entry & 0x000f_ffff_ffff_f000)
            }
            Format::Arm => {
                (entry & 1 != 0, level == 0 || entry & 2 == 0, entry & 0x0000_ffff_ffff_f000)
            }
        };
        match (valid, leaf) {
            (false, _) if entry != 0 => tree.odd.push((gpa, entry)),
            (false, _) => {}
            (true, false) => table(image, format, output, level - 1, gpa, tree)?,
            (true, true) => {
                let size = 1 << shift;
                for offset in (0..size).step_by(PAGE as usize) {
                    tree.pages.insert(gpa + offset, (output & !(size - 1)) + offset);
                }
            }
        }
    }
    Ok(())
}

/// The guest's own tables, as system pages; fails if one is not in the guest's memory.
fn stage1(image: &Image, format: Format, guest: &Value, tree: &Tree) -> Result<BTreeSet<u64>> {
    let state = &guest["state"];
    let register =
        |name: &str| -> Result<u64> { number(text(state, name)?).map_err(anyhow::Error::msg) };
    let mut tables = BTreeSet::new();
    // (guest-physical table, level). x86: 4 levels; Arm with T0SZ = T1SZ = 25: 3 levels.
    let mut open = match format {
        Format::Npt | Format::Ept => vec![(register("cr3")?, 3)],
        Format::Arm => vec![(register("ttbr0")?, 2), (register("ttbr1")?, 2)],
    };
    while let Some((gpa, level)) = open.pop() {
        let page = tree.pages.get(&(gpa & !(PAGE - 1)));
        let page = *page.with_context(|| format!("stage-1 table {gpa:#x} is not mapped"))?;
        if !tables.insert(page) || level == 0 {
            continue;
        }
        for index in 0..512 {
            let entry = image.read_u64(page + index * 8).context("no memory at a table")?;
            let table = match format {
                Format::Npt | Format::Ept => entry & 0x81 == 1,
                Format::Arm => entry & 3 == 3,
            };
            if table {
                open.push((entry & 0x0000_ffff_ffff_f000, level - 1));
            }
        }
    }
    Ok(tables)
}

/// The pages outside of all tables that have a word with the root's page number.
fn pages_naming(image: &Image, format: Format, root: u64) -> BTreeSet<u64> {
    // VTTBR_EL2 has a VMID above bit 48.
    let mask = if format == Format::Arm { 0x0000_ffff_ffff_f000 } else { !(PAGE - 1) };
    let mut pages = BTreeSet::new();
    for range in image.ranges() {
        let content = image.contiguous(*range.start());
        let (words, _) = content.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            if u64::from_le_bytes(*word) & mask == root {
                pages.insert((range.start() + index as u64 * 8) & !(PAGE - 1));
            }
        }
    }
    pages
}

/// The page that the processor itself reads the root from.
fn control_block(image: &Image, format: Format, root: u64, naming: &BTreeSet<u64>) -> Option<u64> {
    let word = |address| image.read_u64(address).unwrap_or(0);
    naming.iter().copied().find(|&page| match format {
        // AMD APM vol. 2, appendix B: N_CR3 at 0xb0, NP_ENABLE in bit 0 at 0x90.
        Format::Npt => word(page + 0xb0) == root && word(page + 0x90) & 1 == 1,
        // Intel SDM vol. 3, 25.2: revision identifier, then a zero abort indicator. The layout is
        // the processor's own; a pointer with walk length 4 (25.6.11) is somewhere in it.
        Format::Ept => {
            let head = word(page);
            let pointer = |at: u64| word(page + at) & !0x40 == root | 0x1e;
            head != 0 && head >> 32 == 0 && (8..PAGE).step_by(8).any(pointer)
        }
        // VTTBR_EL2 is a register: it is in no block.
        Format::Arm => false,
    })
}

/// An ELF64 core with the pages in `keep`, one segment a run.
fn core(image: &Image, format: Format, keep: &BTreeSet<u64>) -> Result<Vec<u8>> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &page in keep {
        match runs.last_mut() {
            Some((start, size)) if *start + *size == page => *size += PAGE,
            _ => runs.push((page, PAGE)),
        }
    }
    let count = u16::try_from(runs.len()).ok().filter(|&count| count < 0xffff);
    let count = count.context("too many runs for one ELF core")?;
    let machine: u16 = if format == Format::Arm { 183 } else { 62 };

    // ELF header, program headers, content from the next page on (System V ABI, chapters 4, 5).
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    out.extend(4u16.to_le_bytes());
    out.extend(machine.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    for field in [0u64, 64, 0] {
        out.extend(field.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    for field in [64, 56, count, 0, 0, 0] {
        out.extend(field.to_le_bytes());
    }
    let content = (64 + 56 * u64::from(count)).next_multiple_of(PAGE);
    let mut offset = content;
    for &(start, size) in &runs {
        out.extend(1u32.to_le_bytes());
        out.extend(4u32.to_le_bytes());
        for field in [offset, 0, start, size, size, PAGE] {
            out.extend(field.to_le_bytes());
        }
        offset += size;
    }
    out.resize(content as usize, 0);
    for page in keep {
        out.extend(
            image.page(*page).with_context(|| format!("page {page:#x} is not in the image"))?,
        );
    }
    Ok(out)
}

/// Writes the file whole or not at all.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)
        .with_context(cannot)?;
    file.write_all(content).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}

/// A string field of the truth.
fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name].as_str().with_context(|| format!("the truth has no text '{name}'"))
}

/// A number as the truth and the options have them: hexadecimal with 0x, else decimal.
fn number(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|_| format!("'{text}' is not a number (0x... or decimal)"))
}
