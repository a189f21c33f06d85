//! AMD, and Hygon, who builds AMD's design.

use super::{Row, none, npt, stage2, unclear};
use crate::processors::Confidence::{High, Medium};
use crate::report::Answer::Unknown;

const BKDG: &str = "AMD BKDG family 10h, CPUID 0x8000000a EDX bit 0 (NP); AMD APM volume 2, 15.25";
const APM: &str = "AMD APM volume 2, 15.25; BIOS and Kernel Developer's Guides since family 12h, CPUID 0x8000000a EDX bit 0";
const BEFORE_NPT: &str =
    "AMD APM volume 2, 15.25: nested paging came with family 10h (2007), and this is older";
const ARMV8: &str =
    "Arm ARM: stage 2 is part of EL2; the core's technical reference manual lists EL2";

pub(super) static ROWS: &[Row] = &[
    // Before nested paging.
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
    // With nested paging.
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
        "Those of family 10h (2007) and later designs have nested paging, those built on K8 have not.",
        BKDG,
        &["athlon", "turion", "sempron"],
    ),
];
