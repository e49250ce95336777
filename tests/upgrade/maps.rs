//! Maps of earlier versions: their layout, and what agents wrote into them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;
use aya::{Ebpf, EbpfLoader};
use lab::edge::stdout;
use lab::node::{Lab, Node, program};
use lab::sandbox::Sandbox;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vpn_edge::datapath::{DEFAULT_ROOT, Datapath, folder};
use vpn_edge_common::{Allocation, Edge, SCHEMA, map};

use crate::fixture::{each, ensure_still};

/// The eBPF object of a version.
pub const OBJECT: &str = "maps/vpn-edge.o";

/// What a version pins: maps by name, and links with the programs on them.
#[derive(Clone, Serialize, Deserialize)]
pub struct Layout {
    pub schema: u32,
    maps: BTreeMap<String, MapLayout>,
    pub links: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct MapLayout {
    /// Its number in the kernel's `enum bpf_map_type`.
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl Layout {
    /// That of this build's maps, which are pinned in `pins`.
    pub fn read(pins: &Path) -> Result<Self> {
        let mut maps = BTreeMap::new();
        for (name, pin) in entries(&pins.join("maps"))? {
            let info = MapInfo::from_pin(pin)?;
            let layout = MapLayout {
                kind: info.map_type()? as u32,
                key: info.key_size(),
                value: info.value_size(),
                entries: info.max_entries(),
                flags: info.map_flags(),
            };
            maps.insert(name, layout);
        }
        let links = on_links(pins)?;
        let links = links.into_iter().map(|(pin, id)| {
            let known = loaded_programs().flatten().find(|info| info.id() == id);
            let name = known.as_ref().and_then(|info| info.name_as_str());
            let name = name.with_context(|| format!("{pin} has no program"))?;
            Ok((pin, name.to_owned()))
        });
        Ok(Self {
            schema: SCHEMA,
            maps,
            links: links.collect::<Result<_>>()?,
        })
    }

    pub fn has(&self, map: &str) -> bool {
        self.maps.contains_key(map)
    }

    /// Where the version pins what it pins, on a machine.
    pub fn pins(&self) -> PathBuf {
        Path::new(DEFAULT_ROOT).join(format!("v{}", self.schema))
    }
}

/// The files of a folder, by name.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        entries.push((
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        ));
    }
    Ok(entries)
}

/// The numbers of the programs on the pinned links, by the links' names.
pub fn on_links(pins: &Path) -> Result<BTreeMap<String, u32>> {
    let links = entries(&pins.join("links"))?
        .into_iter()
        .map(|(name, pin)| {
            let link: FdLink = PinnedLink::from_pin(pin)?.into();
            Ok((name, link.info()?.program_id()))
        });
    links.collect()
}

/// The words of the values that are not all zero, by map and key, in
/// hexadecimal. Those of other maps are the programs' own, in their own time.
pub fn values(pins: &Path) -> Result<Value> {
    Ok(json!({
        map::ALLOCATIONS: words::<{ size_of::<Allocation>() / 8 }>(pins, map::ALLOCATIONS)?,
        map::EDGE: words::<{ size_of::<Edge>() / 8 }>(pins, map::EDGE)?,
    }))
}

fn words<const N: usize>(pins: &Path, name: &str) -> Result<Value> {
    let map = array::<N>(pins, name)?;
    let mut values = serde_json::Map::new();
    for key in 0..map.len() {
        let words = map.get(&key, 0)?;
        if words != [0; N] {
            let words = words.map(|word| format!("{word:016x}"));
            values.insert(key.to_string(), words.to_vec().into());
        }
    }
    Ok(values.into())
}

fn write<const N: usize>(pins: &Path, name: &str, values: &Value) -> Result<()> {
    let mut map = array::<N>(pins, name)?;
    let values = values[name].as_object().context("no values")?;
    ensure!(!values.is_empty(), "{name} is empty");
    for (key, words) in values {
        let words: Vec<String> = serde_json::from_value(words.clone())?;
        let words = words.iter().map(|word| u64::from_str_radix(word, 16));
        let words = words.collect::<Result<Vec<u64>, _>>()?;
        let Ok(words) = <[u64; N]>::try_from(words) else {
            bail!("{name} has values of another size");
        };
        map.set(key.parse()?, words, 0)?;
    }
    Ok(())
}

fn array<const N: usize>(pins: &Path, name: &str) -> Result<Array<MapData, [u64; N]>> {
    let data = MapData::from_pin(pins.join(name)).context(name.to_owned())?;
    Ok(Array::try_from(Map::Array(data))?)
}

/// Loads a version's object, with its maps pinned where that version pins them;
/// those that are pinned already are taken.
pub fn load(object: &[u8], pins: &Path) -> Result<Ebpf> {
    for kind in ["maps", "links"] {
        fs::create_dir_all(pins.join(kind))?;
    }
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(pins.join("maps"));
    Ok(loader.load(object)?)
}

/// Who changes a map's layout raises the schema; who adds a map need not.
#[test]
fn maps_of_the_same_schema_have_the_same_layout() -> Result<()> {
    let sandbox = Sandbox::enter()?;
    let _datapath = Datapath::open(&sandbox.bpffs())?;
    let now = Layout::read(&folder(&sandbox.bpffs()))?;
    each(|fixture| {
        let before: Layout = fixture.json("maps/layout.json")?;
        ensure!(before.schema <= SCHEMA, "the schema went back");
        if before.schema < SCHEMA {
            return Ok(());
        }
        for (name, layout) in &before.maps {
            let now = now.maps.get(name);
            ensure!(
                now == Some(layout),
                "{name} was {layout:?} and is {now:?}: raise vpn_edge_common::SCHEMA"
            );
        }
        Ok(())
    })
}

#[test]
fn what_earlier_agents_wrote_into_maps_is_read() -> Result<()> {
    each(|fixture| {
        let layout: Layout = fixture.json("maps/layout.json")?;
        if layout.schema != SCHEMA {
            return Ok(());
        }
        let lab = Lab::new()?;
        let node = lab.node("edge")?;
        let (values, object) = (
            fixture.json::<Value>("maps/values.json")?,
            fs::read(fixture.path(OBJECT))?,
        );
        let written = node.inside(move || {
            let _old = load(&object, &layout.pins())?;
            let pins = layout.pins().join("maps");
            write::<{ size_of::<Allocation>() / 8 }>(&pins, map::ALLOCATIONS, &values)?;
            write::<{ size_of::<Edge>() / 8 }>(&pins, map::EDGE, &values)?;
            // As an agent of this build does, which adds the maps that are new.
            Datapath::open(Path::new(DEFAULT_ROOT))?;
            Ok(())
        });
        written.join().expect("the thread does not panic")?;
        ensure_still(&fixture.json("maps/ports.json")?, &ports(&node)?)
    })
}

/// What `vpn-edge ports` says of each port, but for counts and for the names of
/// interfaces, which are not in the maps.
pub fn ports(node: &Node) -> Result<Value> {
    let mut command = node.command(program("vpn-edge")?);
    command.args(["ports", "-o", "json"]);
    let rows: Vec<Value> = serde_json::from_str(&stdout(node.output(command)?)?)?;
    let rows = rows.into_iter().map(|row| {
        let fields = [
            "port",
            "tenant",
            "generation",
            "mode",
            "gateway",
            "gateway6",
        ];
        fields.map(|field| (field.to_owned(), row[field].clone()))
    });
    Ok(rows
        .map(|row| Value::Object(row.into_iter().collect()))
        .collect())
}
