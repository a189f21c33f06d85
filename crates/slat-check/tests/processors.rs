//! Processors by the names that `/proc/cpuinfo` and shops give them.

use slat_check::Answer::{self, No, Unknown, Yes};
use slat_check::processors::look_up;

#[test]
fn names_of_both_kinds() {
    let expected: &[(&str, Answer)] = &[
        ("Intel(R) Core(TM) i7-2600K CPU @ 3.40GHz", Yes),
        ("Intel(R) Core(TM) i7 CPU         920  @ 2.67GHz", Yes),
        ("Intel(R) Core(TM) i7 CPU       Q 720  @ 1.60GHz", Yes),
        ("Intel(R) Core(TM) i5 CPU       M 520  @ 2.40GHz", Yes),
        ("Intel(R) Core(TM) i3 CPU         530  @ 2.93GHz", Yes),
        ("i7 920", Yes),
        ("i7-920", Yes),
        ("core I7 980X", Yes),
        ("i5", Yes),
        ("Core i9-13900KS", Yes),
        ("13th Gen Intel(R) Core(TM) i5-1340P", Yes),
        ("11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz", Yes),
        ("Intel(R) Core(TM) Ultra 7 155H", Yes),
        ("Intel(R) Core(TM) 5 120U", Yes),
        ("Intel(R) Core(TM) m3-6Y30 CPU @ 0.90GHz", Yes),
        ("Intel(R) N100", Yes),
        ("Intel Processor N100", Yes),
        ("Intel(R) Core(TM) i3-N305", Yes),
        ("Xeon X5570", Yes),
        ("Intel(R) Xeon(R) CPU           X5570  @ 2.93GHz", Yes),
        ("Xeon 5500 series", Yes),
        ("Intel Xeon X7560", Yes),
        ("Nehalem-EX", Yes),
        ("Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz", Yes),
        ("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", Yes),
        ("INTEL(R) XEON(R) GOLD 6548Y+", Yes),
        ("Intel(R) Xeon(R) 6980P", Yes),
        ("Westmere", Yes),
        ("Intel(R) Atom(TM) CPU C2750  @ 2.40GHz", Yes),
        ("Intel(R) Core(TM)2 Duo CPU     E8400  @ 3.00GHz", No),
        ("Core 2 Duo E8400", No),
        ("Core2Quad Q6600", No),
        ("Intel(R) Pentium(R) 4 CPU 3.00GHz", No),
        ("Pentium(R) Dual-Core  CPU      E5400  @ 2.70GHz", No),
        ("Intel(R) Xeon(R) CPU           E5430  @ 2.66GHz", No),
        ("Intel(R) Xeon(R) CPU           X3220  @ 2.40GHz", No),
        ("Intel(R) Atom(TM) CPU D525   @ 1.80GHz", No),
        ("Atom N270", No),
        ("Atom", Unknown),
        ("Intel(R) Atom(TM) x5-Z8350  CPU @ 1.44GHz", Unknown),
        ("Pentium", Unknown),
        ("Intel(R) Pentium(R) CPU G620 @ 2.60GHz", Unknown),
        ("Celeron", Unknown),
        ("Intel(R) Celeron(R) CPU G1840 @ 2.80GHz", Unknown),
        ("Intel(R) Xeon(R) Processor", Unknown),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", Unknown),
        ("Core", Unknown),
        ("Ryzen 5 3600", Yes),
        ("AMD Ryzen 5 3600 6-Core Processor", Yes),
        ("AMD Ryzen Threadripper 3990X 64-Core Processor", Yes),
        ("EPYC 7742", Yes),
        ("AMD EPYC 7742 64-Core Processor", Yes),
        ("AMD Opteron(tm) Processor 2350", Yes),
        ("Quad-Core AMD Opteron(tm) Processor 2350", Yes),
        ("Six-Core AMD Opteron(tm) Processor 2435", Yes),
        ("AMD Opteron(tm) Processor 6174", Yes),
        ("Barcelona", Yes),
        ("AMD Phenom(tm) II X4 955 Processor", Yes),
        ("AMD Athlon(tm) II X2 250 Processor", Yes),
        ("AMD FX(tm)-8350 Eight-Core Processor", Yes),
        ("AMD A10-7850K APU with Radeon(TM) R7 Graphics", Yes),
        ("AMD E-350 Processor", Yes),
        ("Dual-Core AMD Opteron(tm) Processor 2218", No),
        ("AMD Opteron(tm) Processor 248", No),
        ("AMD Athlon(tm) 64 X2 Dual Core Processor 4200+", No),
        ("AMD Turion(tm) 64 X2", No),
        ("AMD FX-62", No),
        ("Opteron", Unknown),
        ("AMD Athlon(tm) Dual Core Processor 4850e", Unknown),
        ("AMD Sempron(tm) 140 Processor", Unknown),
        ("Cortex-A15", Yes),
        ("ARM Cortex-A72", Yes),
        ("Neoverse-N1", Yes),
        ("Apple M1", Yes),
        ("Apple M2 Max", Yes),
        ("AWS Graviton3", Yes),
        ("Ampere Altra", Yes),
        ("Raspberry Pi 4", Yes),
        ("Cortex-A9", No),
        ("Cortex-M4", No),
        ("Snapdragon", Unknown),
        ("Qualcomm Snapdragon 888", Unknown),
        ("Snapdragon(R) X Elite - X1E80100 - Qualcomm(R) Oryon(TM) CPU", Yes),
        ("Apple A15 Bionic", Unknown),
        ("SiFive U74", No),
        ("QEMU Virtual CPU version 2.5+", Unknown),
        ("Common KVM processor", Unknown),
        ("", Unknown),
        ("no such thing", Unknown),
        ("i7 i7 i7", Yes),
        ("920", Unknown),
    ];
    for &(name, slat) in expected {
        let known = look_up(name);
        assert_eq!(known.slat, slat, "{name}: {known:?}");
        assert_eq!(known.asked, name);
        if slat != Unknown {
            assert!(
                known.source.is_some() && known.confidence.is_some() && known.since.is_some(),
                "{name}"
            );
        }
    }
}

#[test]
fn the_unrestricted_guest_came_with_westmere() {
    for (name, unrestricted) in [
        ("i7-920", No),
        ("i7-980X", Yes),
        ("i5-750", No),
        ("i5-650", Yes),
        ("Xeon X5570", No),
        ("Xeon X5670", Yes),
        ("Xeon X3450", No),
        ("Xeon L3406", Yes),
        ("i7-2600K", Yes),
        ("i7", Unknown),
    ] {
        let known = look_up(name);
        assert_eq!(known.unrestricted_guest, unrestricted, "{name}");
        assert_eq!(known.tagged_tlb, Yes, "{name}");
    }
}

#[test]
fn long_and_hostile_names_end() {
    for name in [
        "(r)".repeat(10_000),
        "#".repeat(500),
        "\u{1b}[31m i7 \0".into(),
        "é".repeat(1000),
        "İ(R)".repeat(300),
    ] {
        let _ = look_up(&name);
    }
}
