//! Finds or fetches everything for one architecture and says where it is.
//!
//! `cargo run -p slat-setup --example fetch -- aarch64`

use slat_setup::{Arch, Cache, Kit};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arch: Arch = std::env::args().nth(1).as_deref().unwrap_or("x86_64").parse()?;
    let cache = Cache::new()?;
    let qemu = slat_setup::find_or_fetch_qemu10(&cache, arch)?;
    println!("{} {}", qemu.binary.display(), qemu.version);
    if arch != Arch::Riscv64 {
        let kit = Kit::fetch(&cache, arch)?;
        println!("{kit:#?}");
    }
    Ok(())
}
