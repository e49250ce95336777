//! `cargo xtask build-ebpf`: builds the kernel's programs and lists them.

use crate::setup::{self, Need};
use crate::{build_ebpf, workspace};
use anyhow::{Context, Result, anyhow, bail};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// One instruction; a 64-bit constant takes two of them.
type Instruction = [u8; 8];

/// A program, or a function that programs call.
struct Function {
    section: String,
    name: String,
    instructions: usize,
    /// Bytes of stack in its own frame.
    stack: usize,
    at: Address,
    /// The functions that it calls.
    calls: Vec<Address>,
}

/// A section's number, and a byte in it.
type Address = (usize, u64);

pub fn build_and_list() -> Result<()> {
    setup::ready(&[Need::Build])?;
    let folder = build_ebpf::build(workspace::root(), &workspace::target_dir().join("ebpf"))
        .map_err(|error| anyhow!(error))?;
    let mut objects: Vec<_> = fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && is_elf(path))
        .collect();
    objects.sort();
    println!(
        "{:<16} {:<12} {:<20} {:>12} {:>12} {:>12}",
        "object", "section", "function", "instructions", "stack bytes", "with calls"
    );
    for object in objects {
        let name = object.file_name().unwrap_or_default().to_string_lossy();
        let functions = functions(&object)?;
        let by_place = by_place(&functions);
        for function in &functions {
            let (deepest, _) = deepest(function, &by_place);
            println!(
                "{name:<16} {:<12} {:<20} {:>12} {:>12} {deepest:>12}",
                function.section, function.name, function.instructions, function.stack
            );
        }
    }
    Ok(())
}

fn is_elf(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

fn functions(path: &Path) -> Result<Vec<Function>> {
    let unreadable = || format!("cannot read {}", path.display());
    let bytes = fs::read(path).with_context(unreadable)?;
    let file = object::File::parse(&*bytes).with_context(unreadable)?;
    let mut found = Vec::new();
    for section in file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
    {
        let relocations: BTreeMap<u64, _> = section.relocations().collect();
        let symbols = file.symbols().filter(|symbol| {
            symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(section.index())
        });
        for symbol in symbols {
            let code = section
                .data_range(symbol.address(), symbol.size())?
                .with_context(|| format!("{} has no code", symbol.name().unwrap_or_default()))?;
            let (code, _) = code.as_chunks();
            let mut calls = Vec::new();
            for (from, offset) in called(code, symbol.address()) {
                calls.push(match relocations.get(&from).map(|to| to.target()) {
                    None => (section.index().0, from.wrapping_add_signed(offset)),
                    Some(RelocationTarget::Symbol(to)) => {
                        let to = file.symbol_by_index(to)?;
                        let section = to.section_index().context("a call of no section")?;
                        (section.0, to.address().wrapping_add_signed(offset))
                    }
                    Some(_) => bail!("{} calls what is no symbol", symbol.name()?),
                });
            }
            found.push(Function {
                section: section.name()?.into(),
                name: symbol.name()?.into(),
                instructions: code.len(),
                stack: stack(code),
                at: (section.index().0, symbol.address()),
                calls,
            });
        }
    }
    Ok(found)
}

fn by_place(functions: &[Function]) -> BTreeMap<Address, &Function> {
    let places = functions.iter().map(|function| (function.at, function));
    places.collect()
}

/// The most stack that a function and those that it calls take at once, and
/// which these are.
fn deepest(function: &Function, by_place: &BTreeMap<Address, &Function>) -> (usize, String) {
    let called = function.calls.iter().map(|at| {
        let called = by_place.get(at).expect("a call of a function");
        deepest(called, by_place)
    });
    let (below, chain) = called.max().unwrap_or_default();
    // Older kernels round frames up to 32 bytes, and count at least as many.
    let own = function.stack.next_multiple_of(32).max(32);
    (own + below, format!("{} {chain}", function.name))
}

/// The calls of functions, by where in the section they are, in code that begins
/// at `start`, and how far from there the function is: from the beginning of what
/// a relocation names, if there is one.
fn called(code: &[Instruction], start: u64) -> impl Iterator<Item = (u64, i64)> {
    const CALL: u8 = 0x85;
    const OF_FUNCTION: u8 = 1;
    let places = (start..).step_by(size_of::<Instruction>());
    let calls = places.zip(code).filter(|(_, instruction)| {
        let [opcode, registers, ..] = **instruction;
        opcode == CALL && registers >> 4 == OF_FUNCTION
    });
    calls.map(|(at, instruction)| {
        let offset = i32::from_le_bytes(*instruction.last_chunk().expect("of eight bytes"));
        (
            at,
            (i64::from(offset) + 1) * size_of::<Instruction>() as i64,
        )
    })
}

/// How far below the frame pointer the code reaches: directly, or through a
/// register that it sets to the frame pointer less a constant.
fn stack(code: &[Instruction]) -> usize {
    const FRAME_POINTER: u8 = 10;
    const LDX: u8 = 1;
    const ST: u8 = 2;
    const STX: u8 = 3;
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let mut deepest = 0;
    let mut copies = [false; 16];
    for instruction in code {
        let [opcode, registers, ..] = *instruction;
        let (destination, source) = (registers & 0xf, registers >> 4);
        let offset = i16::from_le_bytes([instruction[2], instruction[3]]);
        let immediate = i32::from_le_bytes(*instruction.last_chunk().expect("of eight bytes"));
        let reaches = match opcode & 7 {
            LDX if source == FRAME_POINTER => i32::from(offset),
            ST | STX if destination == FRAME_POINTER => i32::from(offset),
            _ if opcode == ADD && copies[usize::from(destination)] => immediate,
            _ => 0,
        };
        deepest = deepest.max(-reaches);
        copies[usize::from(destination)] = opcode == MOVE && source == FRAME_POINTER;
    }
    deepest as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel allows a program and all that it calls.
    const STACK: usize = 512;

    #[test]
    fn the_programs_leave_room_on_the_stack_and_stay_small() {
        let target = workspace::target_dir().join("ebpf");
        let folder = build_ebpf::build(workspace::root(), &target).unwrap();
        let functions = functions(&folder.join("vpn-edge-ebpf")).unwrap();
        let of = |name: &str| {
            let function = functions.iter().find(|function| function.name == name);
            function.unwrap_or_else(|| panic!("no function {name}"))
        };
        let instructions = of("compress").instructions;
        assert!(instructions <= 4_000, "compress has {instructions}");
        let by_place = by_place(&functions);
        for (program, most) in [
            ("ingress", 2_900),
            ("ingress_frags", 2_900),
            ("ingress_tc", 2_600),
            ("egress", 1_200),
        ] {
            let program = of(program);
            let (name, instructions) = (&program.name, program.instructions);
            assert!(
                instructions <= most,
                "{name} has {instructions} instructions"
            );
            let (stack, chain) = deepest(program, &by_place);
            println!("{name}: {stack} bytes of stack, {chain}");
            assert!(
                program.stack > 0 && stack <= STACK,
                "{name} takes {stack} bytes of stack: {chain}"
            );
        }
    }

    #[test]
    fn calls_are_found_with_how_far_they_go() {
        // call of a helper; r0 = 0; call of the function that begins here
        let code = [
            [0x85, 0, 0, 0, 5, 0, 0, 0],
            [0xb7, 0, 0, 0, 0, 0, 0, 0],
            [0x85, 0x10, 0, 0, 0xfd, 0xff, 0xff, 0xff],
        ];
        assert_eq!(called(&code, 80).collect::<Vec<_>>(), [(96, -16)]);
    }

    #[test]
    fn the_stack_is_as_deep_as_the_code_reaches() {
        let reach = |code: &[Instruction]| stack(code);
        // *(u64 *)(r10 - 16) = r1
        let store = [0x7b, 0x1a, 0xf0, 0xff, 0, 0, 0, 0];
        // r2 = r10; r2 += -104
        let copy = [0xbf, 0xa2, 0, 0, 0, 0, 0, 0];
        let add = [0x07, 0x02, 0, 0, 0x98, 0xff, 0xff, 0xff];
        // r1 += -104, which is no frame pointer
        let other = [0x07, 0x01, 0, 0, 0x98, 0xff, 0xff, 0xff];
        assert_eq!(reach(&[]), 0);
        assert_eq!(reach(&[store]), 16);
        assert_eq!(reach(&[store, copy, add]), 104);
        assert_eq!(reach(&[store, copy, other]), 16);
    }
}
