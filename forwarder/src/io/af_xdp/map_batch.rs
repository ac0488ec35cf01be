//! Many entries of a BPF hash map: written or removed in one system call (Linux 5.6), and listed.
//!
//! libbpf-rs has these calls too, but does not return how many entries were processed before an
//! error, nor the errno, and its iterator over keys ends at an error as if there were no more.

#![expect(unsafe_code, reason = "the safe wrappers return no number of entries and no errno")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use libbpf_rs::{MapCore, MapHandle, MapType, libbpf_sys};

/// ENOTSUPP of the kernel (include/linux/errno.h): the type of map has no such operation.
const ENOTSUPP: i32 = 524;
static OPTS: libbpf_sys::bpf_map_batch_opts = libbpf_sys::bpf_map_batch_opts {
    sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as libbpf_sys::size_t,
    elem_flags: libbpf_sys::BPF_ANY as u64,
    flags: 0,
};

/// The number of entries processed, in their order, and why the next one was not.
pub type Processed = (usize, io::Result<()>);

/// Adds or replaces entries. `keys` and `values`: one after the other, each of the map's size.
/// Linux before 5.6 gets a system call for each entry.
///
/// # Errors
/// InvalidInput if the map is not a hash or the lengths are not those of as many keys as values;
/// errors of bpf(BPF_MAP_UPDATE_ELEM): E2BIG if the map is full, ENOMEM.
pub fn update(map: &MapHandle, keys: &[u8], values: &[u8]) -> Processed {
    let entries = match entries(map, keys) {
        Ok(entries) if values.len() == entries as usize * map.value_size() as usize => entries,
        Ok(_) => return (0, Err(io::ErrorKind::InvalidInput.into())),
        Err(error) => return (0, Err(error)),
    };
    let fd = map.as_fd().as_raw_fd();
    batch_or_each(
        entries,
        |count| {
            // SAFETY: the kernel reads `count` keys and values, which is what the slices have; all
            // pointers are valid during the call.
            unsafe {
                let (keys, values) = (keys.as_ptr().cast(), values.as_ptr().cast());
                libbpf_sys::bpf_map_update_batch(fd, keys, values, count, &raw const OPTS)
            }
        },
        |at| {
            let key = &keys[at * map.key_size() as usize..];
            let value = &values[at * map.value_size() as usize..];
            let flags = u64::from(libbpf_sys::BPF_ANY);
            // SAFETY: the kernel reads one key and one value, which the slices have at least.
            unsafe {
                let (key, value) = (key.as_ptr().cast(), value.as_ptr().cast());
                libbpf_sys::bpf_map_update_elem(fd, key, value, flags)
            }
        },
    )
}

/// Removes entries. `keys`: one after the other, each of the map's size. Linux before 5.6 gets a
/// system call for each entry.
///
/// # Errors
/// InvalidInput if the map is not a hash or `keys` is not a number of keys; ENOENT for a key that is
/// not there; other errors of bpf(BPF_MAP_DELETE_ELEM).
pub fn delete(map: &MapHandle, keys: &[u8]) -> Processed {
    let entries = match entries(map, keys) {
        Ok(entries) => entries,
        Err(error) => return (0, Err(error)),
    };
    let fd = map.as_fd().as_raw_fd();
    batch_or_each(
        entries,
        |count| {
            // SAFETY: the kernel reads `count` keys, which is what the slice has; all pointers are
            // valid during the call.
            unsafe {
                libbpf_sys::bpf_map_delete_batch(fd, keys.as_ptr().cast(), count, &raw const OPTS)
            }
        },
        |at| {
            let key = &keys[at * map.key_size() as usize..];
            // SAFETY: the kernel reads one key, which the slice has at least.
            unsafe { libbpf_sys::bpf_map_delete_elem(fd, key.as_ptr().cast()) }
        },
    )
}

/// Up to `count` keys, one after the other: those after `after`, or the first. If `after` is not
/// there any more, the first. Empty: there are no others.
///
/// # Errors
/// InvalidInput if the map is not a hash or `after` is not a key; errors of
/// bpf(BPF_MAP_GET_NEXT_KEY) other than ENOENT.
pub fn next_keys(map: &MapHandle, after: Option<&[u8]>, count: usize) -> io::Result<Vec<u8>> {
    if entries(map, after.unwrap_or_default())? != u32::from(after.is_some()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let size = map.key_size() as usize;
    let mut keys = vec![0; count * size];
    for at in 0..count {
        let (known, next) = keys.split_at_mut(at * size);
        let previous = if at == 0 { after } else { Some(&known[(at - 1) * size..]) };
        let previous = previous.map_or(ptr::null(), <[u8]>::as_ptr);
        // SAFETY: the kernel reads one key unless the pointer is null, and writes one key, for
        // which `next` has room; both are valid during the call.
        let result = unsafe {
            let fd = map.as_fd().as_raw_fd();
            libbpf_sys::bpf_map_get_next_key(fd, previous.cast(), next.as_mut_ptr().cast())
        };
        match -result {
            0 => {}
            libc::ENOENT => {
                keys.truncate(at * size);
                break;
            }
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
    Ok(keys)
}

/// The number of keys in `keys`, which is checked against the map's type and size.
fn entries(map: &MapHandle, keys: &[u8]) -> io::Result<u32> {
    let size = map.key_size() as usize;
    if map.map_type() != MapType::Hash || !keys.len().is_multiple_of(size) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    u32::try_from(keys.len() / size).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Processes `entries` entries by one call of `batch`, or by calls of `each` if the kernel has no
/// such call. Both return 0 or a negative errno; `batch` is given the number of entries, in which
/// the kernel returns the number of those processed.
fn batch_or_each(
    entries: u32,
    batch: impl FnOnce(*mut u32) -> i32,
    each: impl Fn(usize) -> i32,
) -> Processed {
    if entries == 0 {
        return (0, Ok(()));
    }
    let mut count = entries;
    let result = batch(ptr::from_mut(&mut count));
    match -result {
        0 => return (entries as usize, Ok(())),
        // The count was not written.
        libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP => {}
        errno => return (count.min(entries) as usize, Err(io::Error::from_raw_os_error(errno))),
    }
    for at in 0..entries as usize {
        let result = each(at);
        if result < 0 {
            return (at, Err(io::Error::from_raw_os_error(-result)));
        }
    }
    (entries as usize, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_batches_gets_each_entry() {
        for errno in [libc::EINVAL, ENOTSUPP] {
            let each = |at| if at == 2 { -libc::E2BIG } else { 0 };
            let (done, result) = batch_or_each(4, |_| -errno, each);
            let error = result.expect_err("the map is full");
            assert_eq!((done, error.raw_os_error()), (2, Some(libc::E2BIG)));
            let (done, result) = batch_or_each(2, |_| -errno, each);
            assert!(done == 2 && result.is_ok());
        }
    }

    #[test]
    fn an_error_within_a_batch_has_the_kernels_number_of_entries() {
        let none = |_| panic!("the kernel has batches");
        let stops = |count: *mut u32| {
            // SAFETY: points to the number of entries during the call.
            unsafe { *count = 3 };
            -libc::ENOENT
        };
        let (done, result) = batch_or_each(7, stops, none);
        assert_eq!(done, 3);
        assert_eq!(result.expect_err("fails").raw_os_error(), Some(libc::ENOENT));
        let (done, result) = batch_or_each(7, |_| 0, none);
        assert!(done == 7 && result.is_ok());
        let (done, result) = batch_or_each(0, |_| panic!("nothing to do"), none);
        assert!(done == 0 && result.is_ok());
    }
}
