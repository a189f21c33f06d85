mod arena;
mod peers;
mod slat;
use peers::*;
use std::hint::black_box;

const G: u64 = 1 << 30;
const VA: u64 = 4 * G;
const PA: u64 = 16 * G + (2 << 20); // +2 MiB: no 1 GiB block can be used, every huge leaf is 2 MiB
const REPS: usize = 15;

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
fn shuffled(n: u64, seed: u64) -> Vec<u64> {
    let mut v: Vec<u64> = (0..n).collect();
    let mut r = Rng(seed);
    for i in (1..v.len()).rev() {
        v.swap(i, (r.next() % (i as u64 + 1)) as usize);
    }
    v
}
fn best(mut f: impl FnMut() -> (f64, u64)) -> f64 {
    (0..REPS)
        .map(|_| {
            let (ns, n) = f();
            ns / n as f64
        })
        .fold(f64::MAX, f64::min)
}
#[repr(C)]
struct Ts(i64, i64);
unsafe extern "C" {
    fn clock_gettime(c: i32, t: *mut Ts) -> i32;
}
fn now() -> f64 {
    let mut t = Ts(0, 0);
    unsafe { clock_gettime(3, &mut t) };
    t.0 as f64 * 1e9 + t.1 as f64
}
fn t(f: impl FnOnce()) -> f64 {
    let s = now();
    f();
    now() - s
}

fn run<P: Peer>(order: &[u64], sparse: &[u64]) -> Vec<f64> {
    let n = G / 4096;
    let fresh = || {
        arena::arena().reset();
        P::new()
    };
    let mut row = vec![];
    // 1 contiguous 4K map
    row.push(best(|| {
        let mut p = fresh();
        let ns = t(|| p.map_range(VA, PA, G, false));
        drop(p);
        (ns, n)
    }));
    // 2 contiguous 2M map of 64 GiB
    row.push(best(|| {
        let mut p = fresh();
        let ns = t(|| p.map_range(VA, PA, 64 * G, true));
        drop(p);
        (ns, 64 * 512)
    }));
    // 3 map pages one by one, random order, dense 1 GiB
    row.push(best(|| {
        let mut p = fresh();
        let ns = t(|| {
            for &i in order {
                p.map_one(VA + i * 4096, PA + i * 4096)
            }
        });
        drop(p);
        (ns, n)
    }));
    // 3b the same by one cursor, where there is such a thing
    let can = P::new().map_many(&[], VA, PA);
    row.push(if !can {
        f64::NAN
    } else {
        best(|| {
            let mut p = fresh();
            let ns = t(|| {
                p.map_many(order, VA, PA);
            });
            drop(p);
            (ns, n)
        })
    });
    // 4 map pages one by one, sparse (1 per 256 KiB over 64 GiB, random order)
    row.push(best(|| {
        let mut p = fresh();
        let ns = t(|| {
            for &i in sparse {
                p.map_one(VA + i * 4096, PA + i * 4096)
            }
        });
        drop(p);
        (ns, sparse.len() as u64)
    }));
    // 5 random translate over dense 4K 1 GiB
    {
        let mut p = fresh();
        p.map_range(VA, PA, G, false);
        row.push(best(|| {
            let mut s = 0;
            let ns = t(|| {
                for &i in order {
                    s ^= p.query(VA + i * 4096 + 8).unwrap()
                }
            });
            black_box(s);
            (ns, n)
        }));
        for &i in order.iter().take(1000) {
            assert_eq!(p.query(VA + i * 4096 + 8), Some(PA + i * 4096 + 8), "{}", P::NAME);
        }
    }
    // 6 random translate over 64 GiB of 2M
    {
        let mut p = fresh();
        p.map_range(VA, PA, 64 * G, true);
        row.push(best(|| {
            let mut s = 0;
            let ns = t(|| {
                for &i in sparse {
                    s ^= p.query(VA + i * 4096 + 8).unwrap()
                }
            });
            black_box(s);
            (ns, sparse.len() as u64)
        }));
        for &i in sparse.iter().take(1000) {
            assert_eq!(p.query(VA + i * 4096 + 8), Some(PA + i * 4096 + 8), "{}", P::NAME);
        }
    }
    // 7 write-protect 1 GiB of 4K
    row.push(best(|| {
        let mut p = fresh();
        p.map_range(VA, PA, G, false);
        let ns = t(|| p.protect_ro(VA, G));
        drop(p);
        (ns, n)
    }));
    // 8 unmap range
    row.push(best(|| {
        let mut p = fresh();
        p.map_range(VA, PA, G, false);
        let ns = t(|| p.unmap_range(VA, G));
        assert!(p.query(VA).is_none());
        drop(p);
        (ns, n)
    }));
    // 9 random unmap one by one
    row.push(best(|| {
        let mut p = fresh();
        p.map_range(VA, PA, G, false);
        let ns = t(|| {
            for &i in order {
                p.unmap_one(VA + i * 4096)
            }
        });
        drop(p);
        (ns, n)
    }));
    // 9b the same by one cursor, where there is such a thing
    let can = P::new().unmap_many(&[], VA);
    row.push(if !can {
        f64::NAN
    } else {
        best(|| {
            let mut p = fresh();
            p.map_range(VA, PA, G, false);
            let ns = t(|| {
                p.unmap_many(order, VA);
            });
            assert!(p.query(VA).is_none());
            drop(p);
            (ns, n)
        })
    });
    // 10 split 2M blocks (per split)
    let can = {
        let mut p = fresh();
        p.map_range(VA, PA, 2 << 20, true);
        p.split_2m(VA, PA)
    };
    if can {
        row.push(best(|| {
            let mut p = fresh();
            p.map_range(VA, PA, G, true);
            let ns = t(|| {
                for i in 0..512u64 {
                    assert!(p.split_2m(VA + (i << 21), PA + (i << 21)))
                }
            });
            assert_eq!(p.query(VA + 0x201008), Some(PA + 0x201008), "{}", P::NAME);
            drop(p);
            (ns, 512)
        }));
    } else {
        row.push(f64::NAN);
    }
    print!("| {:<24} | {:<5} ", P::NAME, if P::LIVE { "live" } else { "quiet" });
    for r in &row {
        if r.is_nan() { print!("| {:>9} ", "n/a") } else { print!("| {:>9.2} ", r) }
    }
    println!("|");
    row
}

/// A row as ratios to its bound.
fn ratios(name: &str, row: &[f64], bound: &[f64]) {
    print!("| {name:<32} ");
    for (r, b) in row.iter().zip(bound) {
        if (r / b).is_nan() { print!("| {:>9} ", "n/a") } else { print!("| {:>8.2}x ", r / b) }
    }
    println!("|");
}

/// Names what these figures hold for.
fn machine() {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "machine: {}, {} CPUs, {} MHz; load {}",
        field("model name").as_deref().unwrap_or("unknown"),
        std::thread::available_parallelism().map_or(0, |count| count.get()),
        field("cpu MHz").as_deref().unwrap_or("?"),
        load.split(' ').next().unwrap_or("?"),
    );
}

fn bounds() {
    arena::arena().reset();
    let n = (G / 4096) as usize;
    let base = arena::arena().alloc_n(512, 4096) as *mut u64;
    let s = unsafe { core::slice::from_raw_parts_mut(base, n) };
    let memset = best(|| {
        (
            t(|| {
                unsafe { core::ptr::write_bytes(base, 0, n) };
                black_box(base);
            }),
            n as u64,
        )
    });
    let plain = best(|| {
        (
            t(|| {
                for (i, e) in s.iter_mut().enumerate() {
                    *e = (PA + ((i as u64) << 12)) | 0x37;
                }
                black_box(base);
            }),
            n as u64,
        )
    });
    let atomic = best(|| {
        (
            t(|| {
                for i in 0..n {
                    unsafe {
                        (*(base.add(i) as *const core::sync::atomic::AtomicU64)).store(
                            (PA + ((i as u64) << 12)) | 0x37,
                            core::sync::atomic::Ordering::Relaxed,
                        )
                    }
                }
                black_box(base);
            }),
            n as u64,
        )
    });
    let order = shuffled(n as u64, 99);
    let rnd = best(|| {
        (
            t(|| {
                for &i in &order {
                    unsafe { base.add(i as usize).write_volatile((PA + (i << 12)) | 0x37) }
                }
            }),
            n as u64,
        )
    });
    println!(
        "bound: memset {memset:.3} ns/entry; plain vectorisable store loop {plain:.3}; relaxed-atomic store loop {atomic:.3}; random 8-byte stores over 2 MiB {rnd:.3}"
    );
}

fn main() {
    arena::init(1200 << 20);
    machine();
    let order = shuffled(G / 4096, 7);
    let sparse: Vec<u64> =
        shuffled(64 * G / (256 << 10), 11).into_iter().map(|i| i * 64 + (i % 64)).collect();
    bounds();
    println!(
        "| peer                     | row   | map4K rng | map2M rng | map rnd   | by cursor | map sparse| xlate 4K  | xlate 2M  | wp range  | unmap rng | unmap rnd | by cursor | split 2M  |"
    );
    println!(
        "|--------------------------|-------|-----------|-----------|-----------|-----------|-----------|-----------|-----------|-----------|-----------|-----------|-----------|-----------|"
    );
    let only = std::env::args().nth(1);
    let mut rows: Vec<(&str, bool, Vec<f64>)> = vec![];
    macro_rules! go {
        ($p:ty) => {
            if only
                .as_deref()
                .is_none_or(|o| <$p>::NAME.contains(o) || <$p>::NAME.starts_with("raw"))
            {
                rows.push((<$p>::NAME, <$p>::LIVE, run::<$p>(&order, &sparse)));
            }
        };
    }
    go!(Raw);
    go!(slat::SlatQuiet);
    go!(a64::A64<false>);
    go!(ptm::Ptm);
    go!(ptg::Ptg);
    go!(x64::X64);
    go!(RawAtomic);
    go!(slat::SlatLive);
    go!(a64::A64<true>);
    println!("ratios, each to the bound of its kind of row:");
    let bound = |live: bool| {
        let name = if live { RawAtomic::NAME } else { Raw::NAME };
        rows.iter().find(|row| row.0 == name).map(|row| row.2.as_slice()).unwrap_or(&[])
    };
    for (name, live, row) in &rows {
        ratios(name, row, bound(*live));
    }
    slat::faults();
}
