//! Arm cores by their MIDR_EL1 implementer and part number, as `/proc/cpuinfo` prints them.
//!
//! Part numbers: each core's technical reference manual, "MIDR_EL1"; Linux `arch/arm64/include/asm/cputype.h`.

/// The core's name as the processor table spells it.
pub(crate) fn name(implementer: u32, part: u32) -> Option<&'static str> {
    CORES
        .iter()
        .find(|&&(by, number, _)| (by, number) == (implementer, part))
        .map(|&(_, _, name)| name)
}

const ARM: u32 = 0x41;

const CORES: &[(u32, u32, &str)] = &[
    (ARM, 0xc05, "Cortex-A5"),
    (ARM, 0xc07, "Cortex-A7"),
    (ARM, 0xc08, "Cortex-A8"),
    (ARM, 0xc09, "Cortex-A9"),
    (ARM, 0xc0d, "Cortex-A12"),
    (ARM, 0xc0e, "Cortex-A17"),
    (ARM, 0xc0f, "Cortex-A15"),
    (ARM, 0xd01, "Cortex-A32"),
    (ARM, 0xd02, "Cortex-A34"),
    (ARM, 0xd03, "Cortex-A53"),
    (ARM, 0xd04, "Cortex-A35"),
    (ARM, 0xd05, "Cortex-A55"),
    (ARM, 0xd06, "Cortex-A65"),
    (ARM, 0xd07, "Cortex-A57"),
    (ARM, 0xd08, "Cortex-A72"),
    (ARM, 0xd09, "Cortex-A73"),
    (ARM, 0xd0a, "Cortex-A75"),
    (ARM, 0xd0b, "Cortex-A76"),
    (ARM, 0xd0c, "Neoverse-N1"),
    (ARM, 0xd0d, "Cortex-A77"),
    (ARM, 0xd0e, "Cortex-A76AE"),
    (ARM, 0xd40, "Neoverse-V1"),
    (ARM, 0xd41, "Cortex-A78"),
    (ARM, 0xd42, "Cortex-A78AE"),
    (ARM, 0xd44, "Cortex-X1"),
    (ARM, 0xd46, "Cortex-A510"),
    (ARM, 0xd47, "Cortex-A710"),
    (ARM, 0xd48, "Cortex-X2"),
    (ARM, 0xd49, "Neoverse-N2"),
    (ARM, 0xd4a, "Neoverse-E1"),
    (ARM, 0xd4b, "Cortex-A78C"),
    (ARM, 0xd4c, "Cortex-X1C"),
    (ARM, 0xd4d, "Cortex-A715"),
    (ARM, 0xd4e, "Cortex-X3"),
    (ARM, 0xd4f, "Neoverse-V2"),
    (ARM, 0xd80, "Cortex-A520"),
    (ARM, 0xd81, "Cortex-A720"),
    (ARM, 0xd82, "Cortex-X4"),
    (ARM, 0xd84, "Neoverse-V3"),
    (ARM, 0xd85, "Cortex-X925"),
    (ARM, 0xd87, "Cortex-A725"),
    (ARM, 0xd8e, "Neoverse-N3"),
    (0x42, 0x516, "ThunderX2"),
    (0x43, 0x0a1, "ThunderX"),
    (0x43, 0x0af, "ThunderX2"),
    (0x46, 0x001, "A64FX"),
    (0x48, 0xd01, "Kunpeng 920"),
    (0x61, 0x022, "Apple M1"),
    (0x61, 0x023, "Apple M1"),
    (0x61, 0x024, "Apple M1 Pro"),
    (0x61, 0x025, "Apple M1 Pro"),
    (0x61, 0x028, "Apple M1 Max"),
    (0x61, 0x029, "Apple M1 Max"),
    (0x61, 0x032, "Apple M2"),
    (0x61, 0x033, "Apple M2"),
    (0x61, 0x034, "Apple M2 Pro"),
    (0x61, 0x035, "Apple M2 Pro"),
    (0x61, 0x038, "Apple M2 Max"),
    (0x61, 0x039, "Apple M2 Max"),
    (0xc0, 0xac3, "Ampere-1"),
    (0xc0, 0xac4, "Ampere-1a"),
];
