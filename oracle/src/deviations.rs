//! Where hardware models differ from the manual, by name.
//!
//! This table is the only place: `docs/deviations.md` is written from it, and each run counts them.

use crate::probe::{Case, Outcome};

mod arm32;
mod arm64;
mod gaps;
mod riscv;
mod x86;

/// A hardware model, as far as deviations tell models apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// QEMU, x86.
    QemuX86,
    /// Bochs.
    Bochs,
    /// QEMU before 10, AArch64.
    QemuAarch64,
    /// QEMU 10 and later, AArch64.
    Qemu10Aarch64,
    /// QEMU before 10, 32-bit Arm.
    QemuArm,
    /// QEMU 10 and later, 32-bit Arm.
    Qemu10Arm,
    /// QEMU, RISC-V.
    QemuRiscv,
    /// KVM's own walker.
    Kvm,
}

/// How a deviation shows.
#[derive(Clone, Copy)]
pub enum Shows {
    /// In the report: undoes the deviation in the machine's answer, and says whether there was
    /// anything to undo.
    InReport(fn(&Case, &mut Seen) -> bool),
    /// In the walk: the walker has to be told to deviate in the same way, which
    /// [`crate::probe::Subject::deviating`] does.
    InWalk,
}

/// A way in which some models differ from the manual.
pub struct Deviation {
    /// Its name in tables.
    pub name: &'static str,
    /// Who differs so.
    pub models: &'static [Model],
    /// The manual's section that says otherwise, or that leaves it open.
    pub section: &'static str,
    /// What the manual says and what the model does.
    pub what: &'static str,
    /// How it shows.
    pub shows: Shows,
}

/// What a machine answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The outcome.
    pub outcome: Outcome,
    /// The compared words afterwards.
    pub words: Vec<u64>,
}

/// All deviations.
pub fn all() -> impl Iterator<Item = &'static Deviation> {
    [x86::ALL, arm64::ALL, arm32::ALL, riscv::ALL].into_iter().flatten()
}

impl Model {
    /// Its name in the document.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Model::QemuX86 => "QEMU (x86)",
            Model::Bochs => "Bochs",
            Model::QemuAarch64 => "QEMU 7.2 (AArch64)",
            Model::Qemu10Aarch64 => "QEMU 10 (AArch64)",
            Model::QemuArm => "QEMU 7.2 (32-bit Arm)",
            Model::Qemu10Arm => "QEMU 10 (32-bit Arm)",
            Model::QemuRiscv => "QEMU (RISC-V)",
            Model::Kvm => "KVM",
        }
    }
}

/// The text of `docs/deviations.md`.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(
        "# Where hardware models differ from the manuals\n\n\
         `cargo xtask oracle` compares the walker with hardware models that others wrote. Where the \
         two differ, the\nmanual decides. The differences below are the models'; each run counts \
         them by name, and any other\nfails it. This page is written from \
         `oracle/src/deviations/` by `cargo xtask oracle --bless`, and a\ntest holds it to that \
         table.\n\n\
         \"In the report\": the model's answer is corrected, then compared. \"In the walk\": the \
         walker is told to\ndiffer in the same way, and must then give exactly the model's \
         answer. Where several show at once, a run\ncounts them together (`one + another`). What is \
         not asked or not compared at all stands at the end.\n",
    );
    for deviation in all() {
        let models: Vec<&str> = deviation.models.iter().map(|model| model.name()).collect();
        let shows = match deviation.shows {
            Shows::InReport(_) => "in the report",
            Shows::InWalk => "in the walk",
        };
        text += &format!(
            "\n## {}\n\n{}, {shows}. Manual: {}.\n\n{}\n",
            deviation.name,
            models.join(", "),
            deviation.section,
            deviation.what
        );
    }
    for (title, gaps) in
        [("What is not asked", gaps::NOT_ASKED), ("What is not compared", gaps::NOT_COMPARED)]
    {
        text += &format!("\n# {title}\n\n");
        for gap in gaps {
            text += &format!("- {}: {}. Why: {}.\n", gap.models, gap.what, gap.why);
        }
    }
    text
}

/// Puts back the one word that differs from what is expected, where a deviation explains it: `explains` is given
/// what the word held before, what it is expected to hold, and what it holds.
fn undo_one(case: &Case, seen: &mut Seen, explains: impl Fn(u64, u64, u64) -> bool) -> bool {
    let words = case.compared.iter().zip(&mut seen.words);
    let mut differing = words.filter(|((_, _, after), got)| after != *got);
    match (differing.next(), differing.next()) {
        (Some((&(_, before, after), got)), None) if explains(before, after, *got) => {
            *got = after;
            true
        }
        _ => false,
    }
}

/// Undoes every deviation of `model` that shows in the report, and returns those that did.
pub(crate) fn undo(model: Model, case: &Case, seen: &mut Seen) -> Vec<&'static Deviation> {
    let undone = |deviation: &&Deviation| match deviation.shows {
        Shows::InReport(undo) => undo(case, seen),
        Shows::InWalk => false,
    };
    all().filter(|deviation| deviation.models.contains(&model)).filter(undone).collect()
}
