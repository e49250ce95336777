//! `cargo xtask build-ebpf`: builds the kernel's programs and lists them.

use crate::setup::{self, Need};
use crate::{build_ebpf, workspace};
use anyhow::{Context, Result, anyhow};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};
use std::fs;
use std::path::Path;

/// Every BPF instruction takes eight bytes; a 64-bit constant takes two of them.
const INSTRUCTION: u64 = 8;

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
        "{:<16} {:<12} {:<20} {:>12}",
        "object", "section", "function", "instructions"
    );
    for object in objects {
        list(&object).with_context(|| format!("cannot read {}", object.display()))?;
    }
    Ok(())
}

fn is_elf(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF"))
}

fn list(path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    let file = object::File::parse(&*bytes)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for section in file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
    {
        let functions = file.symbols().filter(|symbol| {
            symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(section.index())
        });
        for function in functions {
            println!(
                "{name:<16} {:<12} {:<20} {:>12}",
                section.name()?,
                function.name()?,
                function.size() / INSTRUCTION
            );
        }
    }
    Ok(())
}
