//! What `/dev/kvm` answered, from the text that [`Source::Kvm`](crate::Source::Kvm) describes.

use std::collections::BTreeMap;

/// The answers of `/dev/kvm`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kvm {
    pub(crate) api: Option<u64>,
    /// Whether a virtual machine could be made, or why not.
    pub(crate) create_vm: Option<Result<(), String>>,
    pub(crate) capabilities: BTreeMap<u32, u64>,
    /// The VMX registers that KVM offers to guests.
    pub(crate) msrs: BTreeMap<u32, u64>,
}

impl Kvm {
    pub(crate) fn parse(text: &str) -> Kvm {
        let mut kvm = Kvm::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let next_number = |words: &mut std::str::SplitAsciiWhitespace<'_>| {
                words.next().and_then(super::number)
            };
            match words.next() {
                Some("api") => kvm.api = next_number(&mut words),
                Some("create-vm") => {
                    kvm.create_vm = match words.next() {
                        Some("yes") => Some(Ok(())),
                        Some("no") => Some(Err(words
                            .collect::<Vec<_>>()
                            .join(" ")
                            .chars()
                            .take(200)
                            .collect())),
                        _ => None,
                    };
                }
                Some(kind @ ("cap" | "msr")) => {
                    let index = next_number(&mut words).and_then(|index| index.try_into().ok());
                    if let (Some(index), Some(value)) = (index, next_number(&mut words)) {
                        match kind {
                            "cap" => kvm.capabilities.insert(index, value),
                            _ => kvm.msrs.insert(index, value),
                        };
                    }
                }
                _ => {}
            }
        }
        kvm
    }

    /// Whether KVM answered as KVM does and made a virtual machine.
    pub(crate) fn works(&self) -> bool {
        self.api == Some(12) && self.create_vm == Some(Ok(()))
    }

    /// `KVM_CAP_PRE_FAULT_MEMORY`: on x86 offered only where EPT or NPT is in use.
    pub(crate) fn pre_fault(&self) -> bool {
        self.capabilities.get(&236).is_some_and(|&value| value > 0)
    }

    /// `KVM_CAP_ARM_VM_IPA_SIZE`, in bits.
    pub(crate) fn ipa_bits(&self) -> Option<u64> {
        self.capabilities.get(&165).copied().filter(|bits| (32..=56).contains(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_rubbish() {
        let kvm =
            Kvm::parse("api 12\ncreate-vm yes\ncap 165 40\ncap 236\nmsr 0x48c 0xf01\nnoise\n");
        assert!(kvm.works());
        assert!(!kvm.pre_fault());
        assert_eq!(kvm.ipa_bits(), Some(40));
        assert_eq!(kvm.msrs[&0x48c], 0xf01);
        let kvm =
            Kvm::parse("api twelve\ncreate-vm no Out of memory (os error 12)\ncap 165 9999\n");
        assert!(!kvm.works());
        assert_eq!(kvm.create_vm, Some(Err("Out of memory (os error 12)".into())));
        assert_eq!(kvm.ipa_bits(), None);
    }
}
