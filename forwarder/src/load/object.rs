//! Loading of single programs and maps from the load generator's embedded BPF object.

use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder};

use super::LoadError;
use crate::control::steering::with_log;

/// libbpf reads the ELF headers in place, so they must be aligned.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!("../../../xdp-prog/load.bpf.o"));

/// Loads one program with the maps it uses; `shared` maps replace those with their names.
pub(super) fn load(wanted: &str, shared: &[(&str, &MapHandle)]) -> Result<Object, LoadError> {
    let (result, log) = with_log(|| {
        let mut open = ObjectBuilder::default().name("ferroute_load")?.open_memory(&OBJECT.0)?;
        for mut program in open.progs_mut() {
            let load = program.name() == wanted;
            program.set_autoload(load);
        }
        for mut map in open.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            if let Some((_, shared)) = shared.iter().find(|(other, _)| *other == name) {
                map.reuse_fd(shared.as_fd())?;
            }
        }
        open.load()
    });
    result.map_err(|source| LoadError::load(source, log))
}

/// A handle to a map of a loaded object.
pub(super) fn map(object: &Object, name: &'static str) -> Result<MapHandle, LoadError> {
    let map = object.maps().find(|map| map.name() == name).ok_or(LoadError::Incomplete(name))?;
    MapHandle::try_from(&map).map_err(|source| LoadError::Map(name, source))
}

/// A descriptor of a program of a loaded object.
pub(super) fn program(object: &Object, name: &'static str) -> Result<OwnedFd, LoadError> {
    let program = object.progs().find(|p| p.name() == name).ok_or(LoadError::Incomplete(name))?;
    let fd = program.as_fd().try_clone_to_owned();
    fd.map_err(|source| LoadError::Map(name, libbpf_rs::Error::from(source)))
}

/// Reads the only value of an ARRAY map.
pub(super) fn read(map: &MapHandle, name: &'static str) -> Result<Vec<u8>, LoadError> {
    let value = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY);
    Ok(value.map_err(|source| LoadError::Map(name, source))?.unwrap_or_default())
}

/// Writes the only value of an ARRAY map.
pub(super) fn write(map: &MapHandle, name: &'static str, value: &[u8]) -> Result<(), LoadError> {
    let written = map.update(&0u32.to_ne_bytes(), value, MapFlags::ANY);
    written.map_err(|source| LoadError::Map(name, source))
}
