//! The program that the guest runs: real mode, protected mode, back with large segments ("unreal"
//! mode), protected mode again, and paging, with a store to memory in each.

/// Where it begins.
pub(super) const START: u16 = 0x7c00;
const GDT: u32 = 0x7e00;
const GDT_POINTER: u16 = 0x7e40;
/// The guest's first page directory and its table.
const DIRECTORY: u32 = 0x5000;
const TABLE: u32 = 0x6000;
/// Those of its second address space.
const DIRECTORY_2: u32 = 0x3000;
const TABLE_2: u32 = 0x4000;

const CODE_32: u16 = 0x08;
const DATA_32: u16 = 0x10;
const CODE_16: u16 = 0x18;
const DATA_16: u16 = 0x20;

/// What each mode stored: guest-physical address and value.
const STORES: [(u64, u32); 10] = [
    (0x1_0010, 0x1234),
    (0x20_0000, 0xcafe_babe),
    (0x30_0000, 0xbeef),
    (0x3_0020, 0x5678),
    (0x20_1004, 0x1234_5678),
    (0x20_2000, 0x1234_5679),
    (0x20_3008, 0x9abc_def0),
    (0x20_4008, 0x0bad_cafe),
    (0x20_5008, 0x5ca1_ab1e),
    (0x20_400c, 0x0ddb_a110),
];

/// Machine code under construction.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Code {
        self.0.extend(bytes);
        self
    }

    /// MOV AX, imm16 in 16-bit code.
    fn ax(&mut self, value: u16) -> &mut Code {
        self.bytes(&[0xb8]).bytes(&value.to_le_bytes())
    }

    /// MOV EAX, imm32 in 32-bit code.
    fn eax(&mut self, value: u32) -> &mut Code {
        self.bytes(&[0xb8]).bytes(&value.to_le_bytes())
    }

    fn ds(&mut self) -> &mut Code {
        self.bytes(&[0x8e, 0xd8])
    }

    fn es(&mut self) -> &mut Code {
        self.bytes(&[0x8e, 0xc0])
    }

    fn ss(&mut self) -> &mut Code {
        self.bytes(&[0x8e, 0xd0])
    }

    /// CR0 with PE set or clear, by way of EAX.
    fn protect(&mut self, on: bool) -> &mut Code {
        self.bytes(&[0x0f, 0x20, 0xc0]);
        self.bytes(if on { &[0x0c, 0x01] } else { &[0x24, 0xfe] });
        self.bytes(&[0x0f, 0x22, 0xc0])
    }

    /// CR3, by way of EAX, in 32-bit code.
    fn root(&mut self, directory: u32) -> &mut Code {
        self.eax(directory).bytes(&[0x0f, 0x22, 0xd8])
    }

    /// EAX to an address, in 32-bit code.
    fn store(&mut self, value: u32, at: u32) -> &mut Code {
        self.eax(value).bytes(&[0xa3]).bytes(&at.to_le_bytes())
    }

    /// Where the instruction after a far jump of so many bytes lies.
    fn after(&self, jump: usize) -> u32 {
        u32::from(START) + (self.0.len() + jump) as u32
    }

    /// A far jump to the next instruction, with a 16-bit offset in 16-bit code.
    fn jump_16(&mut self, selector: u16) -> &mut Code {
        let to = self.after(5) as u16;
        self.bytes(&[0xea]).bytes(&to.to_le_bytes()).bytes(&selector.to_le_bytes())
    }

    /// The same with a 32-bit offset, in 16-bit code.
    fn jump_to_32(&mut self, selector: u16) -> &mut Code {
        let to = self.after(8);
        self.bytes(&[0x66, 0xea]).bytes(&to.to_le_bytes()).bytes(&selector.to_le_bytes())
    }

    /// The same in 32-bit code.
    fn jump_32(&mut self, selector: u16) -> &mut Code {
        let to = self.after(7);
        self.bytes(&[0xea]).bytes(&to.to_le_bytes()).bytes(&selector.to_le_bytes())
    }
}

fn code() -> Vec<u8> {
    let mut code = Code::default();
    // Real mode: a store at 1000:0010, and a stack segment whose selector has low bits.
    code.ax(0x1000).ds().ax(0x1234).bytes(&[0xa3, 0x10, 0x00]);
    code.ax(0x9001).ss();
    code.ax(0).ds().bytes(&[0x0f, 0x01, 0x16]).bytes(&GDT_POINTER.to_le_bytes());
    // Protected mode. CS is real mode's until the jump, SS, DS and ES until they are loaded.
    code.protect(true).jump_to_32(CODE_32);
    code.eax(u32::from(DATA_32)).ds().es().ss();
    code.eax(0xcafe_babe).bytes(&[0xa3]).bytes(&0x20_0000u32.to_le_bytes());
    // To real mode by way of 16-bit segments, but with DS as large as it is.
    code.jump_32(CODE_16);
    code.ax(DATA_16).es().ss().protect(false).jump_16(0);
    code.ax(0).es().ss().ds();
    code.ax(0xbeef).bytes(&[0x67, 0xa3]).bytes(&0x30_0000u32.to_le_bytes());
    // Once more, for a DS of 64 KiB.
    code.protect(true).jump_16(CODE_16).ax(DATA_16).ds().protect(false).jump_16(0);
    code.ax(0x3000).ds().es().ss();
    code.ax(0x5678).bytes(&[0xa3, 0x20, 0x00]);
    // Paging: linear 0x100000 is at 0x201000, linear 0x101000 at 0x202000.
    code.protect(true).jump_to_32(CODE_32);
    code.eax(u32::from(DATA_32)).ds().es().ss();
    code.root(DIRECTORY);
    code.bytes(&[0x0f, 0x20, 0xc0, 0x0d]).bytes(&0x8000_0000u32.to_le_bytes());
    code.bytes(&[0x0f, 0x22, 0xc0]);
    code.eax(0x1234_5678).bytes(&[0xa3]).bytes(&0x10_0004u32.to_le_bytes());
    code.bytes(&[0xa1]).bytes(&0x10_0004u32.to_le_bytes()).bytes(&[0x40]);
    code.bytes(&[0xa3]).bytes(&0x10_1000u32.to_le_bytes());
    // A page more, where nothing was: linear 0x102000 is at 0x203000.
    code.store(0x20_3003, TABLE + 0x102 * 4).store(0x9abc_def0, 0x10_2008);
    // The page is another, linear 0x102000 is at 0x204000, from the load of the same root on.
    code.store(0x20_4003, TABLE + 0x102 * 4).root(DIRECTORY).store(0x0bad_cafe, 0x10_2008);
    // In the second address space it is at 0x205000; in the first it is where it was.
    code.root(DIRECTORY_2).store(0x5ca1_ab1e, 0x10_2008);
    code.root(DIRECTORY).store(0x0ddb_a110, 0x10_200c);
    code.bytes(&[0xf4]);
    code.0
}

/// Puts program, GDT and page tables into the guest's memory.
pub(super) fn load(poke: &mut dyn FnMut(u64, u64)) {
    let mut bytes = code();
    bytes.resize(bytes.len().next_multiple_of(8), 0xf4);
    for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
        poke(u64::from(START) + index as u64 * 8, u64::from_le_bytes(*word));
    }
    let descriptors = [
        0,
        0x00cf_9a00_0000_ffff,
        0x00cf_9200_0000_ffff,
        0x0000_9a00_0000_ffff,
        0x0000_9200_0000_ffff,
    ];
    for (index, descriptor) in (0u64..).zip(descriptors) {
        poke(u64::from(GDT) + index * 8, descriptor);
    }
    poke(u64::from(GDT_POINTER), (5 * 8 - 1) | (u64::from(GDT) << 16));
    // Entries are present and writable; the first MiB and the program map to themselves.
    for (directory, table) in [(DIRECTORY, TABLE), (DIRECTORY_2, TABLE_2)] {
        poke(u64::from(directory), u64::from(table) | 3);
        for pair in 0..128u64 {
            let entry = |page: u64| page << 12 | 3;
            poke(u64::from(table) + pair * 8, entry(2 * pair) | entry(2 * pair + 1) << 32);
        }
    }
    poke(u64::from(TABLE) + 0x100 * 4, 0x20_1003 | 0x20_2003 << 32);
    poke(u64::from(TABLE_2) + 0x102 * 4, 0x20_5003);
}

/// What is not as the program leaves it.
pub(super) fn wrong(peek: &dyn Fn(u64) -> Option<u64>) -> Option<String> {
    STORES.iter().find_map(|&(gpa, value)| {
        let word = peek(gpa & !7).unwrap_or_default() >> (8 * (gpa & 7));
        let mask = if value >> 16 == 0 { 0xffff } else { u32::MAX };
        let found = word as u32 & mask;
        (found != value)
            .then(|| format!("{found:#x} is at guest-physical {gpa:#x}, and not {value:#x}"))
    })
}
