//! The table of processors. The first row that fits decides, so that exceptions stand before their rule.
//!
//! Sources that many rows share:
//! * "Intel ARK": the maker's product pages, line "Intel VT-x with Extended Page Tables (EPT)".
//! * "Intel SDM": volume 3, "VMX Support for Address Translation"; EPT and VPID came with Nehalem, the
//!   unrestricted guest with Westmere.
//! * "AMD BKDG 10h": BIOS and Kernel Developer's Guide for family 10h, CPUID 0x8000_000a; AMD APM volume 2, 15.25.
//! * "Arm ARM": D1 "Exception levels" and D8 "Stage 2"; cores by their technical reference manuals.

use super::Confidence;
use crate::report::Answer;

use Answer::{No, Unknown, Yes};
use Confidence::{High, Medium};

pub(super) struct Row {
    pub(super) family: &'static str,
    /// As [`super::name::fits`] reads them.
    pub(super) patterns: &'static [&'static str],
    pub(super) slat: Answer,
    pub(super) technology: &'static str,
    /// The year of the first model.
    pub(super) since: u16,
    pub(super) unrestricted_guest: Answer,
    pub(super) tagged_tlb: Answer,
    pub(super) note: Option<&'static str>,
    pub(super) source: &'static str,
    pub(super) confidence: Confidence,
}

/// A row of Intel's with SLAT; tagged TLBs (VPID) came with EPT.
const fn ept(
    family: &'static str,
    since: u16,
    unrestricted_guest: Answer,
    confidence: Confidence,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: Yes,
        technology: "EPT",
        since,
        unrestricted_guest,
        tagged_tlb: Yes,
        note: None,
        source,
        confidence,
    }
}

/// A row of AMD's with SLAT; tagged TLBs (ASIDs) came before it, and a guest's real mode needs no more.
const fn npt(
    family: &'static str,
    since: u16,
    confidence: Confidence,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: Yes,
        technology: "NPT",
        since,
        unrestricted_guest: Yes,
        tagged_tlb: Yes,
        note: None,
        source,
        confidence,
    }
}

/// A row of Arm's with SLAT; VMIDs are part of stage 2, and so are guests with paging off.
const fn stage2(
    family: &'static str,
    since: u16,
    confidence: Confidence,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: Yes,
        technology: "Stage 2",
        since,
        unrestricted_guest: Yes,
        tagged_tlb: Yes,
        note: Some(
            "The machine's firmware must leave EL2, the hypervisor's privilege, to the system.",
        ),
        source,
        confidence,
    }
}

/// A row without SLAT.
const fn none(
    family: &'static str,
    since: u16,
    confidence: Confidence,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: No,
        technology: "",
        since,
        unrestricted_guest: No,
        tagged_tlb: No,
        note: None,
        source,
        confidence,
    }
}

/// A row whose models differ, or of which too little is known.
const fn unclear(
    family: &'static str,
    since: u16,
    note: &'static str,
    source: &'static str,
    patterns: &'static [&'static str],
) -> Row {
    Row {
        family,
        patterns,
        slat: Unknown,
        technology: "",
        since,
        unrestricted_guest: Unknown,
        tagged_tlb: Unknown,
        note: Some(note),
        source,
        confidence: High,
    }
}

const ARK: &str = "Intel ARK, line \"Intel VT-x with Extended Page Tables (EPT)\"";
const BEFORE_EPT: &str =
    "Intel SDM volume 3: EPT came with Nehalem (2008), and this design is older";
const BKDG: &str = "AMD BKDG family 10h, CPUID 0x8000000a EDX bit 0 (NP); AMD APM volume 2, 15.25";
const APM: &str = "AMD APM volume 2, 15.25: nested paging in every family since 10h";
const BEFORE_NPT: &str =
    "AMD APM volume 2, 15.25: nested paging came with family 10h (2007), and this is older";
const ARMV8: &str =
    "Arm ARM: stage 2 is part of EL2; the core's technical reference manual lists EL2";
const ARMV7: &str = "Arm ARM for ARMv7-A, Virtualization Extensions (optional); the core's technical reference manual";

const ASK_ARK: &str = "Some models of this name have EPT and some have not; the maker's page for the exact model says.";

pub(super) static ROWS: &[Row] = &[
    // --- Names that virtual machines show ---------------------------------------------------------
    unclear(
        "a virtual processor",
        2005,
        "A hypervisor shows this name; it tells nothing of the processor below.",
        "QEMU, target/i386/cpu.c",
        &["qemu virtual", "common kvm", "virtualapple"],
    ),
    // --- Intel: before EPT ------------------------------------------------------------------------
    none(
        "Intel Core 2 (Merom, Conroe, Penryn)",
        2006,
        High,
        BEFORE_EPT,
        &[
            "core 2",
            "core 2duo",
            "core 2quad",
            "conroe",
            "merom",
            "penryn",
            "wolfdale",
            "yorkfield",
            "kentsfield",
        ],
    ),
    none(
        "Intel Core Duo and Core Solo (Yonah)",
        2006,
        High,
        BEFORE_EPT,
        &["core duo", "core solo", "yonah"],
    ),
    none(
        "Intel Pentium before 2008",
        1993,
        High,
        BEFORE_EPT,
        &[
            "pentium 4",
            "pentium d",
            "pentium m",
            "pentium ii",
            "pentium iii",
            "pentium pro",
            "pentium mmx",
            "pentium extreme",
            "pentium 4m",
            "celeron d",
            "celeron m",
            "netburst",
            "prescott",
        ],
    ),
    none(
        "Intel Pentium Dual-Core (a Core 2)",
        2007,
        High,
        BEFORE_EPT,
        &[
            "pentium dual core e2###*",
            "pentium dual core e5###*",
            "pentium dual core e6###*",
            "pentium dual core t2###*",
            "pentium dual core t3###*",
            "pentium dual core t4###*",
            "pentium dual e2###*",
            "pentium e2###*",
            "pentium e5###*",
            "pentium e6###*",
            "dual core e5###*",
            "dual core e6###*",
            "dual core e2###*",
        ],
    ),
    none(
        "Intel Xeon 3000, 3100, 3200 and 3300 (a Core 2)",
        2006,
        High,
        BEFORE_EPT,
        &[
            "xeon 30##*",
            "xeon e31##*",
            "xeon l31##*",
            "xeon x32##*",
            "xeon l33##*",
            "xeon x33##*",
            "xeon 3000",
            "xeon 3100",
            "xeon 3200",
            "xeon 3300",
        ],
    ),
    none(
        "Intel Xeon 5000 to 5400",
        2006,
        High,
        BEFORE_EPT,
        &[
            "xeon 50##*",
            "xeon 51##*",
            "xeon 52##*",
            "xeon 53##*",
            "xeon 54##*",
            "xeon e52##*",
            "xeon e53##*",
            "xeon e54##*",
            "xeon x52##*",
            "xeon x53##*",
            "xeon x54##*",
            "xeon l52##*",
            "xeon l53##*",
            "xeon l54##*",
        ],
    ),
    none(
        "Intel Xeon 7000 to 7400",
        2005,
        High,
        BEFORE_EPT,
        &[
            "xeon 70##*",
            "xeon 71##*",
            "xeon 72##*",
            "xeon 73##*",
            "xeon 74##*",
            "xeon e72##*",
            "xeon e73##*",
            "xeon x73##*",
            "xeon l73##*",
            "xeon e74##*",
            "xeon x74##*",
            "xeon l74##*",
        ],
    ),
    // --- Intel: first generation with EPT ---------------------------------------------------------
    ept("Intel Xeon L3406 (Westmere, Clarkdale)", 2010, Yes, High, ARK, &["xeon l3406"]),
    ept(
        "Intel Xeon 3400, 3500 and 5500 (Nehalem)",
        2009,
        No,
        High,
        ARK,
        &[
            "xeon x34##*",
            "xeon l34##*",
            "xeon 3400",
            "xeon w35##*",
            "xeon 3500",
            "xeon e55##*",
            "xeon x55##*",
            "xeon l55##*",
            "xeon w55##*",
            "xeon 5500",
            "xeon ec55##*",
            "xeon lc55##*",
            "xeon ec35##*",
            "xeon lc35##*",
            "nehalem ep",
            "gainestown",
        ],
    ),
    ept(
        "Intel Xeon 6500 and 7500 (Nehalem-EX)",
        2010,
        Unknown,
        High,
        ARK,
        &[
            "xeon e65##*",
            "xeon x65##*",
            "xeon 6500",
            "xeon e75##*",
            "xeon x75##*",
            "xeon l75##*",
            "xeon 7500",
            "nehalem ex",
            "beckton",
        ],
    ),
    ept(
        "Intel Xeon 3600 and 5600 (Westmere)",
        2010,
        Yes,
        High,
        ARK,
        &[
            "xeon w36##*",
            "xeon 3600",
            "xeon e56##*",
            "xeon x56##*",
            "xeon l56##*",
            "xeon 5600",
            "westmere ep",
        ],
    ),
    ept(
        "Intel Core i7-970, 980 and 990 (Westmere, Gulftown)",
        2010,
        Yes,
        High,
        ARK,
        &["i7 970*", "i7 980*", "i7 990*"],
    ),
    ept(
        "Intel Core i7 and i5 of the first generation (Nehalem: Bloomfield, Lynnfield, Clarksfield)",
        2008,
        No,
        High,
        ARK,
        &[
            "i7 9##*",
            "i7 8##*",
            "i7 7##*",
            "i5 7##*",
            "i7 q 7##*",
            "i7 q 8##*",
            "i7 x 9##*",
            "nehalem",
            "bloomfield",
            "lynnfield",
            "clarksfield",
        ],
    ),
    ept(
        "Intel Core i3, i5 and i7 of the first generation (Westmere: Clarkdale, Arrandale)",
        2010,
        Yes,
        High,
        ARK,
        &[
            "i3 3##*",
            "i3 5##*",
            "i5 4##*",
            "i5 5##*",
            "i5 6##*",
            "i7 6##*",
            "i3 m 3##*",
            "i3 u 3##*",
            "i5 m 4##*",
            "i5 m 5##*",
            "i5 u 4##*",
            "i5 u 5##*",
            "i7 m 6##*",
            "i7 l 6##*",
            "i7 u 6##*",
            "westmere",
            "clarkdale",
            "arrandale",
            "gulftown",
        ],
    ),
    // --- Intel: since 2011 ------------------------------------------------------------------------
    ept(
        "Intel Xeon E3, E5, E7, D, W, E and Scalable",
        2011,
        Yes,
        High,
        ARK,
        &[
            "xeon e3",
            "xeon e5",
            "xeon e7",
            "xeon d",
            "xeon w",
            "xeon e",
            "xeon w3 ####*",
            "xeon w5 ####*",
            "xeon w7 ####*",
            "xeon w9 ####*",
            "xeon bronze",
            "xeon silver",
            "xeon gold",
            "xeon platinum",
            "xeon max",
            "xeon 6###p*",
            "xeon 6###e*",
            "xeon 6 ####*",
            "xeon 6",
        ],
    ),
    ept(
        "Intel Core i3, i5, i7 and i9 since the second generation (Sandy Bridge and later)",
        2011,
        Yes,
        High,
        ARK,
        &[
            "i3 ####*",
            "i5 ####*",
            "i7 ####*",
            "i9 ####*",
            "i3 #####*",
            "i5 #####*",
            "i7 #####*",
            "i9 #####*",
        ],
    ),
    ept(
        "Intel Core M and Core m3, m5, m7",
        2014,
        Yes,
        High,
        ARK,
        &[
            "core m", "core m3", "core m5", "core m7", "m3 ####*", "m3 #y##*", "m5 #y##*",
            "m7 #y##*",
        ],
    ),
    ept(
        "Intel Core Ultra and Core 3, 5, 7, 9",
        2023,
        Yes,
        Medium,
        ARK,
        &[
            "core ultra",
            "ultra 5 ###*",
            "ultra 7 ###*",
            "ultra 9 ###*",
            "core 3 ###*",
            "core 5 ###*",
            "core 7 ###*",
            "core 9 ###*",
        ],
    ),
    ept(
        "Intel Processor N and Core i3-N (Alder Lake-N, Twin Lake)",
        2023,
        Yes,
        Medium,
        ARK,
        &[
            "^ n50",
            "^ n95",
            "^ n97",
            "^ n100",
            "^ n150",
            "^ n200",
            "^ n250",
            "^ n305",
            "i3 n3##*",
            "core 3 n###*",
            "alder lake n",
        ],
    ),
    ept(
        "an Intel design since 2011, by its code name",
        2011,
        Yes,
        High,
        ARK,
        &[
            "sandy bridge",
            "sandybridge",
            "ivy bridge",
            "ivybridge",
            "haswell",
            "broadwell",
            "skylake",
            "kaby lake",
            "coffee lake",
            "comet lake",
            "ice lake",
            "icelake",
            "tiger lake",
            "rocket lake",
            "alder lake",
            "raptor lake",
            "cascade lake",
            "cascadelake",
            "cooper lake",
            "sapphire rapids",
            "sapphirerapids",
            "emerald rapids",
            "granite rapids",
            "sierra forest",
            "meteor lake",
            "lunar lake",
            "arrow lake",
        ],
    ),
    ept(
        "an Intel Core i of a model not given",
        2008,
        Unknown,
        Medium,
        ARK,
        &["i3", "i5", "i7", "i9"],
    ),
    // --- Intel: Atom, Celeron, Pentium --------------------------------------------------------------
    ept(
        "Intel Atom C2000 and C3000 (Avoton, Rangeley, Denverton)",
        2013,
        Yes,
        Medium,
        ARK,
        &["atom c2###*", "atom c3###*", "avoton", "rangeley", "denverton"],
    ),
    none(
        "Intel Atom before 2013 (Bonnell, Saltwell)",
        2008,
        High,
        ARK,
        &[
            "atom 2##*",
            "atom 3##*",
            "atom n2##*",
            "atom n4##*",
            "atom n5##*",
            "atom n2###*",
            "atom d4##*",
            "atom d5##*",
            "atom d2###*",
            "atom z5##*",
            "bonnell",
            "saltwell",
        ],
    ),
    unclear("Intel Atom", 2008, ASK_ARK, ARK, &["atom"]),
    unclear("Intel Pentium", 1993, ASK_ARK, ARK, &["pentium"]),
    unclear("Intel Celeron", 1998, ASK_ARK, ARK, &["celeron"]),
    unclear("Intel Xeon Phi", 2012, ASK_ARK, ARK, &["xeon phi"]),
    unclear(
        "an Intel Xeon of a model not given",
        1998,
        "Xeons have EPT since the 3400, 5500 and 7500; older ones have not. The model number says which this is.",
        ARK,
        &["xeon"],
    ),
    unclear(
        "Intel Core of a model not given",
        2006,
        "Core 2 and older have no EPT, Core i3, i5, i7 and later have.",
        ARK,
        &["^ core"],
    ),
    // --- AMD: before nested paging -------------------------------------------------------------------
    Row {
        // Those with AMD-V tag the TLB all the same.
        tagged_tlb: Unknown,
        ..none(
            "AMD Opteron with one or two cores (K8)",
            2003,
            High,
            BEFORE_NPT,
            &[
                "opteron 1##*",
                "opteron 2##*",
                "opteron 8##*",
                "opteron 12##*",
                "opteron 22##*",
                "opteron 82##*",
            ],
        )
    },
    Row {
        // Those with AMD-V tag the TLB all the same.
        tagged_tlb: Unknown,
        ..none(
            "AMD Athlon 64, Turion 64 and Athlon 64 FX (K8)",
            2003,
            High,
            BEFORE_NPT,
            &[
                "athlon 64",
                "athlon64",
                "turion 64",
                "turion64",
                "fx 5#*",
                "fx 6#*",
                "fx 7#*",
                "mobile athlon 64",
                "sempron 64",
            ],
        )
    },
    none(
        "AMD K5, K6 and Athlon (K7)",
        1996,
        High,
        BEFORE_NPT,
        &["k5", "k6", "k6 2", "k6 3", "k7", "athlon xp", "athlon mp", "duron"],
    ),
    // --- AMD: with nested paging ---------------------------------------------------------------------
    npt(
        "AMD Opteron with four cores (Barcelona, Budapest, Shanghai, Suzuka)",
        2007,
        High,
        BKDG,
        &[
            "opteron 13##*",
            "opteron 23##*",
            "opteron 83##*",
            "barcelona",
            "shanghai",
            "opteron 2300",
            "opteron 8300",
        ],
    ),
    npt(
        "AMD Opteron with six cores (Istanbul)",
        2009,
        High,
        BKDG,
        &["opteron 24##*", "opteron 84##*", "istanbul"],
    ),
    stage2("AMD Opteron A1100 (Cortex-A57)", 2016, High, ARMV8, &["opteron a11##*"]),
    npt(
        "AMD Opteron 3000, 4000, 6000 and X (K10, Bulldozer, Jaguar)",
        2010,
        High,
        APM,
        &[
            "opteron 32##*",
            "opteron 33##*",
            "opteron 41##*",
            "opteron 42##*",
            "opteron 43##*",
            "opteron 61##*",
            "opteron 62##*",
            "opteron 63##*",
            "opteron x1###*",
            "opteron x2###*",
            "opteron x3###*",
        ],
    ),
    npt("AMD Phenom and Phenom II", 2007, High, BKDG, &["phenom"]),
    npt("AMD Athlon II and Turion II", 2009, High, BKDG, &["athlon ii", "turion ii"]),
    npt(
        "AMD FX (Bulldozer, Piledriver)",
        2011,
        High,
        APM,
        &["fx 4###*", "fx 6###*", "fx 8###*", "fx 9###*", "fx 7###*", "bulldozer", "piledriver"],
    ),
    npt(
        "AMD A, E and C (Llano, Bobcat and later)",
        2011,
        Medium,
        APM,
        &[
            "a4 ####*",
            "a6 ####*",
            "a8 ####*",
            "a9 ####*",
            "a10 ####*",
            "a12 ####*",
            "e 240*",
            "e 300*",
            "e 350*",
            "e 450*",
            "e1 ####*",
            "e2 ####*",
            "c 30*",
            "c 50*",
            "c 60*",
            "c 70*",
        ],
    ),
    npt(
        "AMD Ryzen, Threadripper and EPYC (Zen)",
        2017,
        High,
        APM,
        &[
            "ryzen",
            "threadripper",
            "epyc",
            "zen",
            "zen 2",
            "zen 3",
            "zen 4",
            "zen 5",
            "rome",
            "milan",
            "genoa",
        ],
    ),
    npt(
        "AMD Athlon with Zen cores",
        2018,
        Medium,
        APM,
        &[
            "athlon 200ge*",
            "athlon 220ge*",
            "athlon 240ge*",
            "athlon 3000g*",
            "athlon 300u*",
            "athlon 300ge*",
            "athlon gold",
            "athlon silver",
        ],
    ),
    npt(
        "Hygon Dhyana (a Zen)",
        2018,
        Medium,
        "Linux, arch/x86/kernel/cpu/hygon.c and arch/x86/kvm/svm",
        &["hygon", "c86", "dhyana"],
    ),
    unclear(
        "AMD Opteron of a model not given",
        2003,
        "Opterons have nested paging since Barcelona (1300, 2300, 8300); older ones have not.",
        BKDG,
        &["opteron"],
    ),
    unclear(
        "AMD Athlon, Turion or Sempron of a model not given",
        1999,
        "Those of family 10h (2007) and later have nested paging, older ones have not.",
        BKDG,
        &["athlon", "turion", "sempron"],
    ),
    // --- Arm -----------------------------------------------------------------------------------------
    none(
        "Arm Cortex-A5, A8 and A9",
        2005,
        High,
        ARMV7,
        &["cortex a5", "cortex a8", "cortex a9", "a8 cortex", "a9 cortex"],
    ),
    none(
        "Arm11 and older",
        2002,
        High,
        ARMV7,
        &["arm11", "arm1176", "arm1176jzf", "arm926", "arm9", "bcm2835", "armv6*", "armv5*"],
    ),
    none(
        "Arm Cortex-M",
        2004,
        High,
        "Armv6-M, v7-M and v8-M architecture manuals: no address translation",
        &[
            "cortex m0",
            "cortex m0+",
            "cortex m3",
            "cortex m4",
            "cortex m7",
            "cortex m23",
            "cortex m33",
            "cortex m55",
            "cortex m85",
        ],
    ),
    stage2(
        "Arm Cortex-A7, A12, A15 and A17 (ARMv7-A with the Virtualization Extensions)",
        2012,
        High,
        ARMV7,
        &["cortex a7", "cortex a12", "cortex a15", "cortex a17", "bcm2836"],
    ),
    stage2(
        "Arm Cortex-A and Cortex-X, ARMv8-A and later",
        2013,
        High,
        ARMV8,
        &[
            "cortex a32",
            "cortex a34",
            "cortex a35",
            "cortex a53",
            "cortex a55",
            "cortex a57",
            "cortex a65",
            "cortex a65ae",
            "cortex a72",
            "cortex a73",
            "cortex a75",
            "cortex a76",
            "cortex a76ae",
            "cortex a77",
            "cortex a78",
            "cortex a78ae",
            "cortex a78c",
            "cortex a510",
            "cortex a520",
            "cortex a710",
            "cortex a715",
            "cortex a720",
            "cortex a725",
            "cortex x1",
            "cortex x1c",
            "cortex x2",
            "cortex x3",
            "cortex x4",
            "cortex x925",
        ],
    ),
    stage2("Arm Neoverse", 2019, High, ARMV8, &["neoverse"]),
    stage2(
        "Raspberry Pi 3, 4 and 5 (Cortex-A53, A72, A76)",
        2016,
        High,
        ARMV8,
        &["raspberry pi 3", "raspberry pi 4", "raspberry pi 5", "bcm2837", "bcm2711", "bcm2712"],
    ),
    stage2(
        "Apple M",
        2020,
        High,
        "Apple, Hypervisor framework on Apple silicon; Linux, KVM on Apple M1",
        &["apple m1", "apple m2", "apple m3", "apple m4", "apple m5"],
    ),
    stage2(
        "Amazon Graviton (Cortex-A72, Neoverse)",
        2018,
        Medium,
        ARMV8,
        &["graviton", "graviton2", "graviton3", "graviton4"],
    ),
    stage2(
        "Ampere Altra and AmpereOne",
        2020,
        High,
        ARMV8,
        &["ampere altra", "ampereone", "altra", "ampere 1", "ampere 1a"],
    ),
    stage2(
        "Marvell (Cavium) ThunderX and ThunderX2",
        2014,
        High,
        ARMV8,
        &["thunderx", "thunderx2"],
    ),
    stage2("HiSilicon Kunpeng 920", 2019, Medium, ARMV8, &["kunpeng 920", "kunpeng"]),
    stage2(
        "Fujitsu A64FX",
        2019,
        High,
        "Fujitsu A64FX microarchitecture manual; Arm ARM",
        &["a64fx"],
    ),
    stage2(
        "Qualcomm Snapdragon for laptops (8cx, X)",
        2018,
        Medium,
        "Microsoft: Hyper-V on Windows for Arm",
        &["snapdragon x", "snapdragon 8cx"],
    ),
    unclear(
        "Qualcomm Snapdragon",
        2007,
        "Those with ARMv8 cores have stage 2, but phones' firmware keeps EL2 to itself as a rule; older ones differ.",
        ARMV8,
        &["snapdragon"],
    ),
    unclear(
        "a processor for phones",
        2010,
        "Those with ARMv8 cores have stage 2, but phones' firmware keeps EL2 to itself as a rule; older ones differ.",
        ARMV8,
        &["exynos", "mediatek", "dimensity", "helio", "kirin", "tegra", "apple a##*"],
    ),
    // --- RISC-V --------------------------------------------------------------------------------------
    none(
        "SiFive U54 and U74",
        2018,
        High,
        "the core's manual: RV64GC without H",
        &["u74*", "u54*", "fu540*", "fu740*", "jh7100*", "jh7110*"],
    ),
    none(
        "T-Head C906 and C910",
        2019,
        High,
        "the core's manual: no H extension",
        &["c906*", "c910*", "th1520*", "sg2042*"],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processors::{look_up, name};

    /// A row that no name can reach, because earlier rows take all of its patterns, is a mistake; and so
    /// is a pattern that cannot fit anything.
    #[test]
    fn every_pattern_reaches_its_own_row() {
        for row in ROWS {
            for pattern in row.patterns {
                let example = pattern.replace('#', "4").replace(['^', '*'], "");
                let known = look_up(&example);
                assert!(
                    name::fits(&name::words(&example), pattern),
                    "{pattern:?} does not fit its own example {example:?}"
                );
                // Rows for a brand without a model come after those with one and take what is left.
                assert_eq!(known.family, Some(row.family), "{pattern:?} as {example:?}");
            }
        }
    }

    #[test]
    fn every_row_has_a_source() {
        for row in ROWS {
            assert!(!row.source.is_empty() && row.since >= 1990, "{}", row.family);
            assert_eq!(row.slat == Yes, !row.technology.is_empty(), "{}", row.family);
            assert_eq!(
                row.slat == Unknown,
                row.note.is_some() && row.technology.is_empty(),
                "{}",
                row.family
            );
        }
    }
}
