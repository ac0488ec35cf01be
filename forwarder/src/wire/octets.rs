//! Reading and writing fields without panics: missing octets read as zero and writes to them are ignored.
//! Network byte order in the buffer, host byte order in values.

use std::ops::Range;

/// Position of a field, in octets from the start of its header.
pub(super) type Field = Range<usize>;

#[inline(always)]
pub(super) fn array<const N: usize>(data: &[u8], field: Field) -> [u8; N] {
    data.get(field).and_then(|octets| octets.try_into().ok()).unwrap_or([0; N])
}

#[inline(always)]
pub(super) fn get_u8(data: &[u8], at: usize) -> u8 {
    data.get(at).copied().unwrap_or(0)
}

#[inline(always)]
pub(super) fn get_u16(data: &[u8], field: Field) -> u16 {
    u16::from_be_bytes(array(data, field))
}

#[inline(always)]
pub(super) fn get_u32(data: &[u8], field: Field) -> u32 {
    u32::from_be_bytes(array(data, field))
}

#[inline(always)]
pub(super) fn put(data: &mut [u8], field: Field, value: &[u8]) {
    if let Some(octets) = data.get_mut(field)
        && octets.len() == value.len()
    {
        octets.copy_from_slice(value);
    }
}

#[inline(always)]
pub(super) fn put_u8(data: &mut [u8], at: usize, value: u8) {
    if let Some(octet) = data.get_mut(at) {
        *octet = value;
    }
}

#[inline(always)]
pub(super) fn put_u16(data: &mut [u8], field: Field, value: u16) {
    put(data, field, &value.to_be_bytes());
}

#[inline(always)]
pub(super) fn put_u32(data: &mut [u8], field: Field, value: u32) {
    put(data, field, &value.to_be_bytes());
}

/// `data[start..end]`, limited to the available octets.
#[inline(always)]
pub(super) fn slice(data: &[u8], start: usize, end: usize) -> &[u8] {
    data.get(start..end.min(data.len())).unwrap_or(&[])
}

/// As [`slice`], writable.
#[inline(always)]
pub(super) fn slice_mut(data: &mut [u8], start: usize, end: usize) -> &mut [u8] {
    let end = end.min(data.len());
    data.get_mut(start..end).unwrap_or(&mut [])
}
