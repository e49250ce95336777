//! The programs without a kernel: an interpreter that counts what a packet
//! takes.
//!
//! It executes the instructions that the kernel would be given, so the count is
//! the same on every machine and kernel. Clocks stand still, and maps are empty
//! until they are set or a program writes them. Only what the product's
//! programs use is interpreted; all else is an error that names it.

mod helpers;
mod memory;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::Pod;
use aya_obj::generated::bpf_insn;
use aya_obj::{Object, ProgramSection};

use crate::programs::Skb;
use memory::Memory;

/// What the clocks of programs say, in nanoseconds and in the kernel's ticks.
pub const NOW: u64 = 1_000_000 * 1_000_000_000;
pub const JIFFIES: u64 = 1_000_000 * 250;

/// In the programs' read-only data, from which aya-log takes its level.
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

const STACK: u64 = 0x1000_0000;
const CONTEXT: u64 = 0x2000_0000;
const PACKET: u64 = 0x3000_0000;
/// What stands for a map, plus its number: no memory is there.
const MAPS: u64 = 0xffff << 32;

/// Bytes of one function's stack, and how deep functions call each other.
const FRAME: u64 = 512;
const DEPTH: u64 = 8;
/// The interface of a test run by default, lo.
const LO: u32 = 1;
/// More than any packet takes: a program that executes more does not end.
const ENDLESS: usize = 1 << 20;

/// Offset of a field in the context that a program gets.
mod field {
    /// `struct xdp_md`.
    pub mod xdp {
        pub const DATA: u64 = 0;
        pub const DATA_END: u64 = 4;
        pub const INGRESS_IFINDEX: u64 = 12;
        pub const SIZE: usize = 24;
    }

    /// `struct __sk_buff`.
    pub mod skb {
        pub const LEN: u64 = 0;
        pub const IFINDEX: u64 = 40;
        pub const DATA: u64 = 76;
        pub const DATA_END: u64 = 80;
        pub const GSO_SEGS: u64 = 164;
        pub const GSO_SIZE: u64 = 176;
        pub const SIZE: usize = 192;
    }
}

/// An object's programs and maps.
#[derive(Clone)]
pub struct Machine {
    programs: BTreeMap<String, Program>,
    maps: Vec<Map>,
    memory: Memory,
    /// The way to each destination, as the kernel's routes say.
    pub routes: BTreeMap<IpAddr, Route>,
    /// Where the packet begins and ends.
    packet: (u64, u64),
    cost: Cost,
}

#[derive(Clone)]
struct Program {
    kind: Kind,
    /// With all functions that it calls.
    code: Rc<[bpf_insn]>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Xdp,
    Tc,
}

#[derive(Clone)]
struct Map {
    name: String,
    value_size: usize,
    entries: u32,
    /// Where the values are that have been asked for.
    values: BTreeMap<u32, u64>,
}

/// A packet's way out.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub interface: u32,
    pub source: [u8; 6],
    pub destination: [u8; 6],
    pub mtu: u16,
}

/// What a program answered, the packet as it left it, and what that took.
pub struct Ran {
    pub answer: u32,
    pub packet: Vec<u8>,
    pub cost: Cost,
}

/// What was executed. A 64-bit constant is one instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub instructions: usize,
    /// Look-ups in maps, by the map's name.
    pub lookups: Calls,
    /// Calls of all other helpers.
    pub helpers: Calls,
}

/// How often what was called, in the order of the first calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls(pub Vec<(String, usize)>);

impl Calls {
    fn count(&mut self, name: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, calls)) => *calls += 1,
            None => self.0.push((name.into(), 1)),
        }
    }
}

impl Machine {
    /// Links the programs of an object, just as aya does before it loads them.
    ///
    /// # Errors
    ///
    /// When the object is none that aya can load.
    pub fn new(object: &[u8]) -> Result<Self> {
        let mut object = Object::parse(object)?;
        // Logging is off, as it is by default.
        object.patch_map_data([(LOG_LEVEL, (&[0][..], true))].into())?;
        let definitions: BTreeMap<_, _> = std::mem::take(&mut object.maps).into_iter().collect();
        let mut memory = Memory::default();
        let maps = definitions.iter().map(|(name, map)| {
            let mut values = BTreeMap::new();
            if !map.data().is_empty() {
                values.insert(0, memory.add(map.data().to_vec()));
            }
            Map {
                name: name.clone(),
                value_size: map.value_size() as usize,
                entries: map.max_entries(),
                values,
            }
        });
        let maps = maps.collect();
        let sections = object.functions.keys().map(|(section, _)| *section);
        let sections = sections.collect();
        // A map's number stands for the descriptor that it has in the kernel.
        let numbered = (0..).zip(&definitions);
        let numbered = numbered.map(|(number, (name, map))| (name.as_str(), number, map));
        object.relocate_maps(numbered, &sections)?;
        object.relocate_calls(&sections)?;
        let programs = object.programs.iter().map(|(name, program)| {
            let kind = match program.section {
                ProgramSection::Xdp { .. } => Kind::Xdp,
                ProgramSection::SchedClassifier => Kind::Tc,
                _ => bail!("`{name}` is a program of another type"),
            };
            let function = &object.functions[&program.function_key()];
            let code = function.instructions.as_slice().into();
            Ok((name.clone(), Program { kind, code }))
        });
        Ok(Self {
            programs: programs.collect::<Result<_>>()?,
            maps,
            memory,
            routes: BTreeMap::new(),
            packet: (0, 0),
            cost: Cost::default(),
        })
    }

    /// Writes a value, as user space does.
    ///
    /// # Errors
    ///
    /// When the map has no such values.
    pub fn set<T: Pod>(&mut self, map: &str, key: u32, value: &T) -> Result<()> {
        let at = self.place_of::<T>(map, key)?;
        // SAFETY: plain data, for as long as it is borrowed.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) };
        self.memory
            .bytes_mut(at, bytes.len())?
            .copy_from_slice(bytes);
        Ok(())
    }

    /// Reads a value, as user space does.
    ///
    /// # Errors
    ///
    /// As for [`Machine::set`].
    pub fn get<T: Pod>(&mut self, map: &str, key: u32) -> Result<T> {
        let at = self.place_of::<T>(map, key)?;
        let bytes = self.memory.bytes(at, size_of::<T>())?;
        // SAFETY: as many bytes as a `T` has, which is plain data.
        Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn place_of<T>(&mut self, map: &str, key: u32) -> Result<u64> {
        let number = self.maps.iter().position(|known| known.name == map);
        let number = number.with_context(|| format!("the object has no map {map}"))?;
        ensure!(
            self.maps[number].value_size == size_of::<T>(),
            "{map} holds other values"
        );
        self.value(number, key)
            .with_context(|| format!("{map} has no entry {key}"))
    }

    /// Where a value is; nothing if the key is out of range.
    fn value(&mut self, map: usize, key: u32) -> Option<u64> {
        let map = &mut self.maps[map];
        if key >= map.entries {
            return None;
        }
        let size = map.value_size;
        let value = map.values.entry(key);
        Some(*value.or_insert_with(|| self.memory.add(vec![0; size])))
    }

    /// Runs the program called `name` over `packet`, as the kernel's test run
    /// does.
    ///
    /// # Errors
    ///
    /// When there is none, or it does what is not interpreted.
    pub fn run(&mut self, name: &str, packet: &[u8], skb: Skb) -> Result<Ran> {
        let program = self.programs.get(name).context("no such program")?.clone();
        self.memory.place(STACK, vec![0; (FRAME * DEPTH) as usize]);
        self.memory.place(PACKET, packet.to_vec());
        let interface = u64::from(skb.interface.unwrap_or(LO));
        match program.kind {
            Kind::Xdp => {
                self.memory.place(CONTEXT, vec![0; field::xdp::SIZE]);
                let field = CONTEXT + field::xdp::INGRESS_IFINDEX;
                self.memory.store(field, 4, interface)?;
            }
            Kind::Tc => {
                use field::skb::{GSO_SEGS, GSO_SIZE, IFINDEX, SIZE};
                self.memory.place(CONTEXT, vec![0; SIZE]);
                self.memory.store(CONTEXT + IFINDEX, 4, interface)?;
                self.memory
                    .store(CONTEXT + GSO_SEGS, 4, skb.gso_segs.into())?;
                self.memory
                    .store(CONTEXT + GSO_SIZE, 4, skb.gso_size.into())?;
            }
        }
        self.bound(program.kind, PACKET, PACKET + packet.len() as u64)?;
        self.cost = Cost::default();
        let answer = self
            .execute(&program)
            .map_err(|error| error.context(format!("interpreting `{name}`")))?;
        let (start, end) = self.packet;
        Ok(Ran {
            answer,
            packet: self.memory.bytes(start, (end - start) as usize)?.to_vec(),
            cost: std::mem::take(&mut self.cost),
        })
    }

    /// Says where the packet begins and ends, in the context too.
    fn bound(&mut self, kind: Kind, start: u64, end: u64) -> Result<()> {
        ensure!(PACKET <= start && start <= end, "no room for the packet");
        self.packet = (start, end);
        let (first, last) = match kind {
            Kind::Xdp => (field::xdp::DATA, field::xdp::DATA_END),
            Kind::Tc => {
                self.memory
                    .store(CONTEXT + field::skb::LEN, 4, end - start)?;
                (field::skb::DATA, field::skb::DATA_END)
            }
        };
        self.memory.store(CONTEXT + first, 4, start)?;
        self.memory.store(CONTEXT + last, 4, end)
    }

    fn execute(&mut self, program: &Program) -> Result<u32> {
        // For the instruction set see Documentation/bpf in the kernel's source.
        const FRAME_POINTER: usize = 10;
        let code = &*program.code;
        let mut registers = [0_u64; 11];
        registers[1] = CONTEXT;
        registers[FRAME_POINTER] = STACK + FRAME;
        // Where each caller goes on, and the registers that it keeps.
        let mut callers: Vec<(usize, [u64; 5])> = Vec::new();
        let mut next = 0;
        loop {
            let at = next;
            let instruction = code.get(at).context("the program has no end")?;
            next += 1;
            self.cost.instructions += 1;
            ensure!(self.cost.instructions < ENDLESS, "the program does not end");
            let (opcode, offset) = (instruction.code, instruction.off);
            let (to, from) = (
                instruction.dst_reg() as usize,
                instruction.src_reg() as usize,
            );
            let immediate = i64::from(instruction.imm) as u64;
            let unsupported = || {
                anyhow!(
                    "instruction {at} is not interpreted: opcode {opcode:#04x}, \
                     offset {offset}, immediate {immediate:#x}"
                )
            };
            // Of the second operand, in arithmetic and jumps.
            let operand = match opcode & 8 {
                0 => immediate,
                _ => registers[from],
            };
            match opcode & 7 {
                class::LD if opcode == 0x18 => {
                    let high = code.get(next).context("half a constant")?.imm;
                    next += 1;
                    registers[to] = match from {
                        0 => immediate & 0xffff_ffff | (high as u64) << 32,
                        // A map, and a value of one that is the program's data.
                        1 => MAPS + immediate,
                        2 => self.value(immediate as usize, 0).context("no data")? + high as u64,
                        _ => return Err(unsupported()),
                    };
                }
                class::LDX if opcode & MODE == MEMORY => {
                    let address = registers[from].wrapping_add(offset as u64);
                    registers[to] = self.memory.load(address, size(opcode))?;
                }
                kind @ (class::ST | class::STX) if opcode & MODE == MEMORY => {
                    let value = match kind {
                        class::ST => immediate,
                        _ => registers[from],
                    };
                    let address = registers[to].wrapping_add(offset as u64);
                    self.memory.store(address, size(opcode), value)?;
                }
                // A compare and exchange, of the atomic operations.
                class::STX if opcode & MODE == 0xc0 && immediate == 0xf1 => {
                    let (address, size) = (registers[to].wrapping_add(offset as u64), size(opcode));
                    let found = self.memory.load(address, size)?;
                    if found == narrow(registers[0], size) {
                        self.memory.store(address, size, registers[from])?;
                    }
                    registers[0] = found;
                }
                class::ALU if opcode & 0xf0 == 0xd0 => {
                    // The host is little-endian: only the other order is a swap.
                    let value = narrow(registers[to], instruction.imm as usize / 8);
                    let unused = 64 - instruction.imm as u32;
                    registers[to] = match opcode & 8 {
                        0 => value,
                        _ => value.swap_bytes() >> unused,
                    };
                }
                class::ALU if offset == 0 => {
                    let (left, right) = (registers[to] as u32, operand as u32);
                    let result = arithmetic_32(opcode >> 4, left, right);
                    registers[to] = result.ok_or_else(unsupported)?.into();
                }
                class::ALU64 if offset == 0 => {
                    let result = arithmetic_64(opcode >> 4, registers[to], operand);
                    registers[to] = result.ok_or_else(unsupported)?;
                }
                class::JMP if opcode == 0x85 && from == 0 => {
                    let arguments = *registers[1..].first_chunk().expect("ten registers");
                    registers[0] = self.call(program.kind, instruction.imm, arguments)?;
                }
                class::JMP if opcode == 0x85 && from == 1 => {
                    ensure!((callers.len() as u64) < DEPTH - 1, "calls go too deep");
                    let kept = *registers[6..].first_chunk().expect("five registers");
                    callers.push((next, kept));
                    registers[FRAME_POINTER] += FRAME;
                    next = next.wrapping_add_signed(instruction.imm as isize);
                }
                class::JMP if opcode == 0x95 => {
                    let Some((back, kept)) = callers.pop() else {
                        return Ok(registers[0] as u32);
                    };
                    next = back;
                    registers[6..].copy_from_slice(&kept);
                }
                kind @ (class::JMP | class::JMP32) if kind == class::JMP || opcode >> 4 != 0 => {
                    let (left, right) = match kind {
                        class::JMP => (registers[to], operand),
                        // Sign extension keeps the order, signed and unsigned.
                        _ => (
                            i64::from(registers[to] as i32) as u64,
                            i64::from(operand as i32) as u64,
                        ),
                    };
                    if jumps(opcode >> 4, left, right).ok_or_else(unsupported)? {
                        next = next.wrapping_add_signed(offset.into());
                    }
                }
                _ => return Err(unsupported()),
            }
        }
    }
}

/// The lower three bits of an opcode.
mod class {
    pub const LD: u8 = 0;
    pub const LDX: u8 = 1;
    pub const ST: u8 = 2;
    pub const STX: u8 = 3;
    pub const ALU: u8 = 4;
    pub const JMP: u8 = 5;
    pub const JMP32: u8 = 6;
    pub const ALU64: u8 = 7;
}

/// Of a load or a store, which upper bits of the opcode say what kind it is,
/// and what they are of a plain one.
const MODE: u8 = 0xe0;
const MEMORY: u8 = 0x60;

/// How many bytes a load or a store is of.
const fn size(opcode: u8) -> usize {
    match opcode & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

/// The lower `size` bytes of a number, at least one.
const fn narrow(value: u64, size: usize) -> u64 {
    value & (u64::MAX >> (64 - 8 * size))
}

/// Nothing if there is no such operation; so in the next two.
fn arithmetic_64(operation: u8, left: u64, right: u64) -> Option<u64> {
    Some(match operation {
        0x0 => left.wrapping_add(right),
        0x1 => left.wrapping_sub(right),
        0x2 => left.wrapping_mul(right),
        0x3 => left.checked_div(right).unwrap_or(0),
        0x4 => left | right,
        0x5 => left & right,
        0x6 => left.wrapping_shl(right as u32),
        0x7 => left.wrapping_shr(right as u32),
        0x8 => left.wrapping_neg(),
        0x9 => left.checked_rem(right).unwrap_or(left),
        0xa => left ^ right,
        0xb => right,
        0xc => (left as i64).wrapping_shr(right as u32) as u64,
        _ => return None,
    })
}

fn arithmetic_32(operation: u8, left: u32, right: u32) -> Option<u32> {
    Some(match operation {
        // The bits that matter of the others are the same in 64 bits.
        0x3 => left.checked_div(right).unwrap_or(0),
        0x6 => left.wrapping_shl(right),
        0x7 => left.wrapping_shr(right),
        0x9 => left.checked_rem(right).unwrap_or(left),
        0xc => (left as i32).wrapping_shr(right) as u32,
        _ => arithmetic_64(operation, left.into(), right.into())? as u32,
    })
}

fn jumps(operation: u8, left: u64, right: u64) -> Option<bool> {
    let (signed_left, signed_right) = (left as i64, right as i64);
    Some(match operation {
        0x0 => true,
        0x1 => left == right,
        0x2 => left > right,
        0x3 => left >= right,
        0x4 => left & right != 0,
        0x5 => left != right,
        0x6 => signed_left > signed_right,
        0x7 => signed_left >= signed_right,
        0xa => left < right,
        0xb => left <= right,
        0xc => signed_left < signed_right,
        0xd => signed_left <= signed_right,
        _ => return None,
    })
}
