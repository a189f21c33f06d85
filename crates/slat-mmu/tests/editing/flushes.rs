//! Invalidations that real hypervisors forgot, shortened or ordered wrongly, each planted in the place
//! of the library's plan.

use slat::edit::{
    Encode, Gather, Word, arm64 as arm_entries, riscv as riscv_entries, x86 as x86_entries,
};
use slat::format::riscv::Scheme;
use slat::format::x86::long::Long;
use slat::invalidate::{amd, arm64, riscv};
use slat::{EntryLayout, SliceMemory, Spa};
use slat_mmu::checker::{Checker, What, Why};

use super::formats::{
    BROADCASTS, GUEST, RANGES, SVINVAL, arm, arm_64k, arm_host, arm_lower, arm32_short, ept, npt,
    riscv_g, riscv_s, riscv_s_upper, x86_amd_host, x86_by_pcid, x86_four, x86_pae,
};
use super::world::{Op, Subject, clean, found, sequence};

const MAP: Op = Op::Map { start: 0, pages: 4, output: 0, rights: 0, grouped: false };
const UNMAP: Op = Op::Unmap { start: 0, pages: 4 };

/// A leaf is cleared and the flag that asks for a flush is not set (pKVM-IA#18, XSA-366).
#[test]
fn pkvm_ia_18_xsa_366_forgotten_flush() {
    let subject = Subject { flush: |_, _| {}, ..ept() };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// The flush names another guest.
#[test]
fn flush_of_another_id() {
    let subject = Subject {
        flush: |checker, _| checker.amd(&amd::Instruction::TlbControl { asid: Some(6), value: 3 }),
        ..npt()
    };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// The requested length is flushed, not what changed (generic_pt, unmap of a large entry).
#[test]
fn generic_pt_short_range() {
    let subject = Subject {
        flush: |checker, gather| {
            let rs1 = Some(gather.ranges()[0].start >> 2);
            let rs2 = Some(3);
            checker.riscv(&riscv::Instruction::Gvma { invalidate_only: false, rs1, rs2 }, 3);
        },
        ..riscv_g()
    };
    let ops = [MAP, Op::Protect { start: 0, pages: 4, rights: 1 }];
    assert!(found(&sequence(&subject, &ops), Why::Rights, What::Translation));
}

/// Leaves are flushed and the walk caches are not, although a table went.
#[test]
fn pkvm_ia_41_walk_caches_not_flushed() {
    let subject = Subject {
        flush: |checker, gather| {
            for range in gather.ranges() {
                for page in range.start >> 12..=range.last >> 12 {
                    let operation = arm64::Operation::Ipas2le1;
                    let tlbi = arm64::Instruction::Tlbi { operation, operand: page };
                    checker.arm64(&tlbi, 3);
                }
            }
            checker.arm64(&arm64::Instruction::Dsb, 3);
            let operation = arm64::Operation::Vmalle1;
            checker.arm64(&arm64::Instruction::Tlbi { operation, operand: 0 }, 3);
            checker.arm64(&arm64::Instruction::Dsb, 3);
        },
        ..arm()
    };
    let map = Op::Map { start: 0, pages: 512, output: 1, rights: 0, grouped: false };
    let ops = [map, Op::Unmap { start: 0, pages: 512 }];
    let run = std::panic::catch_unwind(|| sequence(&subject, &ops));
    // The table is freed while it is still held: the frame source notices that.
    let message = *run.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("a frame that is still reached was freed"), "{message}");
    assert!(message.contains("table entry"), "{message}");
}

/// An address is given to TLBI in pages of 4 KiB whatever the granule is, and not in the granule's
/// (Zephyr #115708).
#[test]
fn zephyr_115708_operand_in_pages_of_64_kib() {
    let subject = Subject {
        flush: |checker, gather| {
            for range in gather.ranges() {
                for operand in range.start >> 16..=range.last >> 16 {
                    let operation = arm64::Operation::Ipas2e1;
                    checker.arm64(&arm64::Instruction::Tlbi { operation, operand }, 3);
                }
            }
            checker.arm64(&arm64::Instruction::Dsb, 3);
            let operation = arm64::Operation::Vmalle1;
            checker.arm64(&arm64::Instruction::Tlbi { operation, operand: 0 }, 3);
            checker.arm64(&arm64::Instruction::Dsb, 3);
        },
        ..arm_64k()
    };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// A broadcast counts large pages and does not say that it does (FreeBSD-EN-26:10).
#[test]
fn freebsd_en_26_10_stride_of_a_broadcast() {
    const VA: u64 = 1 << 0;
    const ASID: u64 = 1 << 2;
    let subject = Subject {
        flush: |checker, gather| {
            for range in gather.ranges() {
                let more = ((range.last - range.start) >> 21) as u32;
                let rax = range.start | VA | ASID;
                checker.amd(&amd::Instruction::Invlpgb { rax, ecx: more, edx: 5 });
            }
            checker.amd(&amd::Instruction::Tlbsync);
        },
        ..x86_pae()
    };
    let ops = [
        Op::Map { start: 0, pages: 1024, output: 0, rights: 0, grouped: false },
        Op::Unmap { start: 0, pages: 1024 },
    ];
    assert!(found(&sequence(&subject, &ops), Why::Unmapped, What::Translation));
}

/// The stage-2 translations are dropped, the combined ones made from them are not.
#[test]
fn optee_os_5803_combined_translations_not_flushed() {
    let subject = Subject {
        flush: |checker, gather| {
            let mut combined = false;
            arm64::plan(gather, &RANGES, |step| {
                let arm64::Instruction::Tlbi { operation, .. } = step else {
                    return checker.arm64(&step, 3);
                };
                combined |= operation == arm64::Operation::Vmalle1;
                if operation != arm64::Operation::Vmalle1 {
                    checker.arm64(&step, 3);
                }
            });
            assert!(combined, "the plan has the instruction that is left out");
        },
        ..arm()
    };
    let all = sequence(&subject, &[MAP, UNMAP]);
    assert!(found(&all, Why::Unmapped, What::Combined));
    assert!(!found(&all, Why::Unmapped, What::Translation));
}

/// No DSB between the two: combined translations are made again from stage 2's.
#[test]
fn no_barrier_between_the_two_stages() {
    let subject = Subject {
        flush: |checker, gather| {
            arm64::plan(gather, &RANGES, |step| {
                if step != arm64::Instruction::Dsb {
                    checker.arm64(&step, 3);
                }
            });
            checker.arm64(&arm64::Instruction::Dsb, 3);
        },
        ..arm()
    };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Combined));
}

/// A new mapping without a fence, on harts that cache invalid entries (the P550).
#[test]
fn bao_378_invalid_entries_not_fenced() {
    let subject = Subject { flush: |_, _| {}, ..riscv_g() };
    assert!(found(&sequence(&subject, &[UNMAP, MAP]), Why::NowMapped, What::Invalid));
    assert!(!found(
        &sequence(&Subject { flush: |_, _| {}, ..ept() }, &[UNMAP, MAP]),
        Why::NowMapped,
        What::Invalid
    ));
}

/// The broadcast is not waited for (CVE-2025-10263 is the Arm erratum of this kind).
#[test]
fn cve_2025_10263_broadcast_not_waited_for() {
    let subject = Subject {
        flush: |checker, gather| {
            amd::plan(gather, &BROADCASTS, 0, |step| {
                if step != amd::Instruction::Tlbsync {
                    checker.amd(&step);
                }
            });
        },
        ..npt()
    };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// The host's own pages are flushed as a guest's are, by TLB_CONTROL: no VMRUN enters ASID 0, and a flush
/// of everything waits for one.
#[test]
fn host_flushed_by_tlb_control() {
    for flush in [
        |checker: &mut Checker<Long>, _: &Gather<'_>| {
            checker.amd(&amd::Instruction::TlbControl { asid: Some(0), value: 3 });
        },
        |checker: &mut Checker<Long>, _: &Gather<'_>| {
            checker.amd(&amd::Instruction::TlbControl { asid: None, value: 1 });
        },
    ] {
        let subject = Subject { flush, ..x86_amd_host() };
        assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
    }
}

/// A dirty bit is cleared and the translation that was made while it was set stays.
#[test]
fn cleaned_without_a_flush() {
    let subject = Subject { flush: |_, _| {}, ..ept() };
    let ops = [MAP, Op::Touch { page: 0, write: true }, Op::Clean { start: 0, pages: 4 }];
    assert!(found(&sequence(&subject, &ops), Why::Dirty, What::Translation));
}

/// Pages are given another memory type and accessed by the old one: a processor may hold it in its TLB
/// (Intel SDM 3A 5.10.2.2, Arm ARM D8.17.1), and two types of one page lose what either has cached.
#[test]
fn another_memory_type_without_a_flush() {
    fn forgotten<F: Encode>(subject: Subject<F>)
    where
        <F::Word as Word>::Atomic: Default,
    {
        let retype = [MAP, Op::Retype { start: 0, pages: 4, kind: 1 }];
        let name = slat::format::Format::name(&subject.format);
        let subject = Subject { flush: |_, _| {}, ..subject };
        let stale =
            |ops: &[Op]| found(&sequence(&subject, ops), Why::MemoryType, What::Translation);
        assert!(stale(&retype), "{name}");
        assert!(!stale(&[MAP, Op::Retype { start: 0, pages: 4, kind: 0 }]), "{name}");
    }
    forgotten(ept());
    forgotten(npt());
    forgotten(x86_four());
    forgotten(arm_lower());
    forgotten(arm32_short());
    forgotten(riscv_g());
}

/// A group is changed entry by entry and flushed by one of its pages alone: where the instruction
/// reaches by page, what was kept of the others stays.
#[test]
fn group_flushed_by_one_page() {
    let subject = Subject {
        flush: |checker, gather| {
            let rs1 = Some(gather.ranges()[0].start >> 2);
            let rs2 = Some(3);
            checker.riscv(&riscv::Instruction::Gvma { invalidate_only: false, rs1, rs2 }, 3);
        },
        ..riscv_g()
    };
    let map = Op::Map { start: 0, pages: 32, output: 0, rights: 0, grouped: true };
    let ops = [map, Op::Protect { start: 0, pages: 32, rights: 1 }];
    // The second group is as stale as before.
    assert!(found(&sequence(&subject, &ops), Why::Rights, What::Translation));
}

/// A flush of one address space leaves global pages, which are every one's: on each architecture where that
/// is the whole flush, they are found, and where the plan knows of them, nothing is.
#[test]
fn global_pages_are_no_address_spaces() {
    let x86 = |permissions| {
        let mut attributes = x86_entries::Attributes::new(permissions);
        (attributes.user, attributes.global) = (true, true);
        attributes
    };
    let ops = [MAP, UNMAP];
    let stale = |all: Vec<_>| found(&all, Why::Unmapped, What::Translation);
    let intel = Subject { attributes: x86, ..x86_by_pcid() };
    assert!(stale(sequence(&intel, &ops)));
    clean(Subject { attributes: x86, ..x86_four() }, &ops);
    let amd = Subject {
        attributes: x86,
        flush: |checker, gather| {
            amd::plan(gather, &BROADCASTS, 0, |step| {
                checker.amd(&match step {
                    amd::Instruction::Invlpgb { rax, ecx, edx } => {
                        amd::Instruction::Invlpgb { rax: rax & !(1 << 3), ecx, edx }
                    }
                    step => step,
                });
            });
        },
        ..x86_pae()
    };
    assert!(stale(sequence(&amd, &ops)));
    clean(Subject { attributes: x86, ..x86_pae() }, &ops);
    let arm = |permissions| arm_entries::Stage1Attributes {
        not_global: false,
        ..arm_entries::Stage1Attributes::new(permissions)
    };
    let by_asid = |checker: &mut Checker<_>, gather: &Gather<'_>| {
        let capabilities = arm64::Capabilities { most_operations: 0, ..RANGES };
        arm64::plan(gather, &capabilities, |step| checker.arm64(&step, GUEST));
    };
    let by_asid = Subject { attributes: arm, flush: by_asid, ..arm_lower() };
    assert!(stale(sequence(&by_asid, &ops)));
    let whole = |checker: &mut Checker<_>, gather: &Gather<'_>| {
        let capabilities = arm64::Capabilities { global_pages: true, most_operations: 0, ..RANGES };
        arm64::plan(gather, &capabilities, |step| checker.arm64(&step, GUEST));
    };
    clean(Subject { attributes: arm, flush: whole, ..arm_lower() }, &ops);
    let riscv = |permissions| {
        let mut attributes = riscv_entries::Attributes::new(permissions);
        attributes.global = true;
        attributes
    };
    let by_asid = Subject { attributes: riscv, ..riscv_s(Scheme::Sv39) };
    assert!(stale(sequence(&by_asid, &ops)));
    let all = |checker: &mut Checker<_>, gather: &Gather<'_>| {
        let capabilities = riscv::Capabilities { global_pages: true, ..SVINVAL };
        riscv::plan(gather, &capabilities, |step| checker.riscv(&step, GUEST));
    };
    clean(Subject { attributes: riscv, flush: all, ..by_asid }, &ops);
}

/// HFENCE.VVMA orders what is of the guest whose VMID is in `hgatp`, and of no other.
#[test]
fn fence_under_another_vmid() {
    let subject = Subject {
        flush: |checker, gather| {
            riscv::plan(gather, &SVINVAL, |step| checker.riscv(&step, GUEST - 1));
        },
        ..riscv_s_upper(Scheme::Sv39)
    };
    assert!(found(&sequence(&subject, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// ALLE1 is of the EL1&0 regime: what the host translates by tables of its own stays, as does what another
/// VMID's flush names.
#[test]
fn the_hosts_own_translations_are_of_another_regime() {
    clean(arm_host(), &[MAP, UNMAP]);
    let alle1 = Subject {
        flush: |checker, _| {
            let operation = arm64::Operation::Alle1;
            checker.arm64(&arm64::Instruction::Tlbi { operation, operand: 0 }, GUEST);
            checker.arm64(&arm64::Instruction::Dsb, GUEST);
        },
        ..arm_host()
    };
    assert!(found(&sequence(&alle1, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
    let under_a_vmid = Subject { flush: arm_lower().flush, ..arm_host() };
    assert!(found(&sequence(&under_a_vmid, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
    let by_the_host = Subject { flush: arm_host().flush, ..arm_lower() };
    assert!(found(&sequence(&by_the_host, &[MAP, UNMAP]), Why::Unmapped, What::Translation));
}

/// A reserved level hint is none (Arm ARM D8.16.5): it does not keep table entries.
#[test]
fn reserved_level_hints_are_none() {
    for hint in [0b0100, 0b1000, 0b1001, 0b1100] {
        let mut checker = Checker::new(arm_lower().format);
        let context = arm_lower().context;
        let mut bytes = vec![0; 3 * 4096];
        let mut memory = SliceMemory::new(Spa::new(0), &mut bytes);
        for (at, entry) in [(0, 0x1003), (0x1000, 0x2003), (0x2000, 0x40_0703)] {
            memory.poke(Spa::new(at), EntryLayout::LE64, entry).unwrap();
        }
        checker.run(context, 0);
        checker.speculate(&mut memory);
        assert_eq!(checker.len(), 3);
        let operand = 3 << 48 | hint << 44;
        checker
            .arm64(&arm64::Instruction::Tlbi { operation: arm64::Operation::Vae1, operand }, GUEST);
        checker.arm64(&arm64::Instruction::Dsb, GUEST);
        assert!(checker.is_empty(), "{hint:#b}");
    }
}
