//! CPUID, from the text that `cpuid -r` prints.
//!
//! Intel SDM volume 2A, "CPUID"; AMD APM volume 3, appendix E; hypervisor leaves from 0x4000_0000 as in
//! "Hypervisor Top-Level Functional Specification" chapter 2.

use std::collections::BTreeMap;

/// EAX, EBX, ECX and EDX.
pub(crate) type Registers = [u32; 4];

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// The leaves of one processor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpuid(BTreeMap<u32, Registers>);

impl Cpuid {
    /// Reads lines of the form `0x00000001 0x00: eax=0x.. ebx=0x.. ecx=0x.. edx=0x..`, of which the
    /// first for each leaf counts; other lines and other subleaves are passed over.
    pub(crate) fn parse(text: &str) -> Cpuid {
        let mut leaves = BTreeMap::new();
        for line in text.lines() {
            if let Some((leaf, registers)) = parse_line(line) {
                leaves.entry(leaf).or_insert(registers);
            }
        }
        Cpuid(leaves)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The leaf, when the processor says that it has it. A processor answers for leaves that it does
    /// not have too: Intel's repeat the last basic leaf.
    fn leaf(&self, leaf: u32) -> Option<Registers> {
        let start = match leaf {
            0x4000_0000.. => leaf & 0xffff_ff00,
            _ => 0,
        };
        let last = self.0.get(&start)?[EAX];
        // Only the low 16 bits count up within a range.
        (leaf <= last && last & 0xffff_0000 == start & 0xffff_0000).then_some(())?;
        self.0.get(&leaf).copied()
    }

    pub(crate) fn vendor(&self) -> Option<String> {
        let [_, ebx, ecx, edx] = self.leaf(0)?;
        Some(text_of(&[ebx, edx, ecx]))
    }

    /// The processor's name, from leaves 0x8000_0002..=0x8000_0004.
    pub(crate) fn name(&self) -> Option<String> {
        let mut words = Vec::new();
        for leaf in 0x8000_0002..=0x8000_0004 {
            words.extend(self.leaf(leaf)?);
        }
        let name = text_of(&words).trim().to_string();
        (!name.is_empty()).then_some(name)
    }

    /// Leaf 1, ECX bit 5: VMX.
    pub(crate) fn vmx(&self) -> Option<bool> {
        Some(self.leaf(1)?[ECX] & 1 << 5 != 0)
    }

    /// Leaf 0x8000_0001, ECX bit 2: SVM. A processor without that leaf has no SVM.
    pub(crate) fn svm(&self) -> Option<bool> {
        self.leaf(0x8000_0000)?;
        Some(self.leaf(0x8000_0001).is_some_and(|leaf| leaf[ECX] & 1 << 2 != 0))
    }

    /// Leaf 0x8000_000a, which is defined where there is SVM only.
    pub(crate) fn svm_features(&self) -> Option<SvmFeatures> {
        if self.svm() != Some(true) {
            return None;
        }
        let leaf = self.leaf(0x8000_000a)?;
        Some(SvmFeatures {
            asids: leaf[EBX],
            nested_paging: leaf[EDX] & 1 != 0,
            flush_by_asid: leaf[EDX] & 1 << 6 != 0,
            guest_mode_execute_trap: leaf[EDX] & 1 << 17 != 0,
        })
    }

    /// Leaf 0x8000_0001, EDX bit 26: pages of 1 GiB. On AMD processors this holds for nested tables too
    /// (APM volume 2, 15.25).
    pub(crate) fn pages_1g(&self) -> Option<bool> {
        Some(self.leaf(0x8000_0001)?[EDX] & 1 << 26 != 0)
    }

    /// Leaf 1, ECX bit 31, which no processor sets and every hypervisor does that does not hide.
    pub(crate) fn hypervisor_present(&self) -> Option<bool> {
        Some(self.leaf(1)?[ECX] & 1 << 31 != 0)
    }

    /// The signatures of the hypervisor interfaces on offer, in order. The first may be a costume:
    /// KVM and Xen can show Hyper-V's interface first and their own behind it.
    pub(crate) fn hypervisor_signatures(&self) -> Vec<String> {
        if self.hypervisor_present() != Some(true) {
            return Vec::new();
        }
        (0x4000_0000u32..0x4000_0400)
            .step_by(0x100)
            .filter_map(|block| {
                let [last, ebx, ecx, edx] = *self.0.get(&block)?;
                // KVM once left EAX at 0, meaning block + 1.
                let fits = last == 0 || (block..=block + 0xff).contains(&last);
                let signature = text_of(&[ebx, ecx, edx]);
                let readable = signature.len() >= 3
                    && signature.chars().all(|c| c.is_ascii_graphic() || c == ' ');
                (fits && readable).then(|| signature.trim().to_string())
            })
            .collect()
    }

    /// What Hyper-V says of itself, when it really is the one below.
    pub(crate) fn hyper_v(&self) -> Option<HyperV> {
        if self.hypervisor_signatures() != ["Microsoft Hv"] {
            return None;
        }
        Some(HyperV {
            // Leaf 0x4000_0003, EBX: bit 0 CreatePartitions, bit 12 CpuManagement. Together they are
            // given to the parent partition alone.
            parent_partition: self
                .leaf(0x4000_0003)
                .is_some_and(|leaf| leaf[EBX] & 1 != 0 && leaf[EBX] & 1 << 12 != 0),
            // Leaf 0x4000_0006, EAX bit 3: second-level address translation is in use.
            slat_in_use: self.leaf(0x4000_0006).map(|leaf| leaf[EAX] & 1 << 3 != 0),
        })
    }
}

/// What leaf 0x8000_000a says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SvmFeatures {
    pub(crate) asids: u32,
    pub(crate) nested_paging: bool,
    pub(crate) flush_by_asid: bool,
    pub(crate) guest_mode_execute_trap: bool,
}

/// What Hyper-V's leaves say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HyperV {
    pub(crate) parent_partition: bool,
    pub(crate) slat_in_use: Option<bool>,
}

fn parse_line(line: &str) -> Option<(u32, Registers)> {
    let (place, registers) = line.split_once(':')?;
    let mut place = place.split_ascii_whitespace();
    let leaf = number(place.next()?)?;
    if number(place.next()?)? != 0 {
        return None;
    }
    let mut values = registers.split_ascii_whitespace();
    let mut register = |name: &str| number(values.next()?.strip_prefix(name)?.strip_prefix('=')?);
    Some((leaf, [register("eax")?, register("ebx")?, register("ecx")?, register("edx")?]))
}

fn number(text: &str) -> Option<u32> {
    super::number(text)?.try_into().ok()
}

/// Registers as the text that they hold, without what follows its end.
fn text_of(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const THIS_KIND: &str = "\
CPU 0:
   0x00000000 0x00: eax=0x00000024 ebx=0x756e6547 ecx=0x6c65746e edx=0x49656e69
   0x00000001 0x00: eax=0x000a0671 ebx=0x00020800 ecx=0xfffa3203 edx=0x1f8bfbff
   0x40000000 0x00: eax=0x40000001 ebx=0x4b4d564b ecx=0x564b4d56 edx=0x0000004d
   0x40000006 0x00: eax=0x00000008 ebx=0x00070001 ecx=0x00000000 edx=0x00000000
   0x40000100 0x00: eax=0x00000000 ebx=0x00070001 ecx=0x00000000 edx=0x00000000
   0x80000000 0x00: eax=0x80000008 ebx=0x00000000 ecx=0x00000000 edx=0x00000000
   0x80000001 0x00: eax=0x00000000 ebx=0x00000000 ecx=0x00000121 edx=0x2c100800
   0x8000000a 0x00: eax=0x00000000 ebx=0x00070001 ecx=0x00000000 edx=0x00000001
";

    #[test]
    fn leaves_past_the_last_are_not_believed() {
        let cpuid = Cpuid::parse(THIS_KIND);
        assert_eq!(cpuid.vendor().as_deref(), Some("GenuineIntel"));
        assert_eq!(cpuid.vmx(), Some(false));
        assert_eq!(cpuid.svm(), Some(false));
        assert_eq!(cpuid.svm_features(), None);
        assert_eq!(cpuid.hypervisor_signatures(), ["KVMKVMKVM"]);
        assert_eq!(cpuid.hyper_v(), None);
        assert_eq!(cpuid.pages_1g(), Some(true));
    }

    #[test]
    fn a_costume_is_seen_through() {
        let costume = THIS_KIND
            .replace(
                "0x40000000 0x00: eax=0x40000001 ebx=0x4b4d564b ecx=0x564b4d56 edx=0x0000004d",
                "0x40000000 0x00: eax=0x40000006 ebx=0x7263694d ecx=0x666f736f edx=0x76482074",
            )
            .replace(
                "0x40000100 0x00: eax=0x00000000 ebx=0x00070001 ecx=0x00000000 edx=0x00000000",
                "0x40000100 0x00: eax=0x40000101 ebx=0x4b4d564b ecx=0x564b4d56 edx=0x0000004d",
            );
        let cpuid = Cpuid::parse(&costume);
        assert_eq!(cpuid.hypervisor_signatures(), ["Microsoft Hv", "KVMKVMKVM"]);
        assert_eq!(cpuid.hyper_v(), None);
    }

    #[test]
    fn rubbish_is_passed_over() {
        let cpuid = Cpuid::parse(
            "0x1: eax\n: : :\n0x99999999999 0x00: eax=1\n0x00000000 0x00: eax=0xz ebx=0 ecx=0 edx=0\n",
        );
        assert!(cpuid.is_empty());
        assert_eq!(cpuid.vmx(), None);
        assert_eq!(cpuid.svm(), None);
    }
}
