//! How the data accesses of a block of instructions differ from what was predicted.

use super::super::bytes::{put_varint, zigzag};
use super::super::layout::Section;
use super::super::model::{Model, Site, code, length};
use super::{DIFFERENCES, Data, LENGTHS, SHAPES};

/// Writes how the accesses of a block differ from what was predicted in number, shape and address;
/// returns the flags that say so.
pub(super) fn write_accesses(
    model: &mut Model,
    data: &[Data],
    sections: &mut [Vec<u8>; Section::OF_VCPU.len()],
) -> u8 {
    let mut flags = 0;
    let same = |(site, data): (&Site, &Data)| site.shape == data.shape;
    let sites = model.sites();
    if sites.len() < data.len() || !sites.iter().zip(data).all(same) {
        flags |= code::SHAPE;
        put_varint(&mut sections[SHAPES], (data.len() as u64) << 1 | 1);
        let shape: Vec<u8> = data.iter().map(|data| data.shape).collect();
        sections[SHAPES].extend_from_slice(&shape);
        model.reshape(&shape).expect("full long before sites run out");
    } else if sites.len() != data.len() {
        // Left early, by an exception: the shape stays as it is for the next time.
        flags |= code::SHAPE;
        put_varint(&mut sections[SHAPES], (data.len() as u64) << 1);
    }
    let mut moved = model.moved;
    let sites = &mut model.sites()[..data.len()];
    let predicted = |(site, data): (&Site, &Data)| site.last.wrapping_add(site.stride) == data.va;
    if sites.iter().zip(data).all(predicted) {
        for site in sites {
            site.last = site.last.wrapping_add(site.stride);
            moved = site.stride;
        }
    } else {
        flags |= code::ADDRESSES;
        for (site, data) in sites.iter_mut().zip(data) {
            let difference = data.va.wrapping_sub(site.last);
            let coded = zigzag(difference);
            let bytes = ((71 - coded.leading_zeros()) / 8).max(1) as u8;
            let length = if difference == site.stride {
                length::PREDICTED
            } else if difference == moved {
                length::ALONG
            } else if bytes <= length::LONGEST {
                let bytes = usize::from(bytes);
                sections[DIFFERENCES].extend_from_slice(&coded.to_le_bytes()[..bytes]);
                bytes as u8
            } else {
                sections[DIFFERENCES].extend_from_slice(&data.va.to_le_bytes());
                length::WHOLE
            };
            sections[LENGTHS].push(length);
            site.last = data.va;
            site.stride = difference;
            moved = difference;
        }
    }
    model.moved = moved;
    flags
}
