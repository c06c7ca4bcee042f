//! The header of one safetensors file: eight bytes of length, then a JSON object; the data follows.
//! Every field is checked before it is used.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::{TensorInfo, foreign};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Size in bytes of the length field at the start of a file.
pub(super) const LENGTH_BYTES: usize = 8;

/// The longest header accepted, in bytes; the format's own implementation has the same limit.
const LONGEST_HEADER: usize = 100_000_000;

/// The header's entry for one tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The entries of a header, by name, in the file's order. A name that occurs twice is refused.
struct Header(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object with an entry for every tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut entries = Vec::new();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(serde::de::Error::custom(format!("'{name}' occurs twice")));
            }
            if name == "__metadata__" {
                map.next_value::<BTreeMap<String, String>>()?;
            } else {
                entries.push((name, map.next_value()?));
            }
        }
        Ok(Header(entries))
    }
}

/// Read the header of the file at `path`, whose bytes are `file`.
///
/// # Errors
/// [`Error::File`] and [`Error::Tensor`] for a header that is truncated or malformed, or whose
/// length, offsets or sizes contradict the file or each other.
pub(super) fn read(path: &Path, file: &[u8], shard: usize) -> Result<Vec<TensorInfo>> {
    let start = data_start(path, file)?;
    let json = &file[LENGTH_BYTES..start];
    let Header(entries) = serde_json::from_slice(json)
        .map_err(|error| Error::file(path, format!("the header is malformed: {error}")))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        tensors.push(locate(path, name, &entry, start, file.len(), shard)?);
    }
    check_coverage(path, &tensors, start, file.len())?;
    Ok(tensors)
}

/// The offset of the data in the file.
fn data_start(path: &Path, file: &[u8]) -> Result<usize> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        let length = file.len();
        return Err(Error::file(path, format!("is truncated: {length} bytes hold no header")));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if let Some((kind, hint)) = foreign::kind(file).filter(|_| length > rest.len()) {
        let error = Error::file(path, kind);
        return Err(hint.into_iter().fold(error, Error::with_hint));
    }
    if length > LONGEST_HEADER {
        let reason = format!("the header claims {length} bytes; this is not a safetensors file");
        return Err(Error::file(path, reason));
    }
    if length > rest.len() {
        return Err(Error::file(
            path,
            format!("is truncated: the header claims {length} bytes, {} follow", rest.len()),
        ));
    }
    Ok(LENGTH_BYTES + length)
}

fn locate(
    path: &Path,
    name: String,
    entry: &Entry,
    start: usize,
    file_size: usize,
    shard: usize,
) -> Result<TensorInfo> {
    let refuse = |reason: String| Error::tensor(path, &name, reason);
    if name.is_empty() {
        return Err(refuse("has no name".into()));
    }
    let dtype = Dtype::from_name(&entry.dtype)
        .ok_or_else(|| refuse(format!("dtype '{}' is not known", entry.dtype)))?;
    let size = byte_size(dtype, &entry.shape).ok_or_else(|| {
        refuse(format!(
            "shape {:?} of {} is not a whole number of bytes that fits in memory",
            entry.shape, entry.dtype
        ))
    })?;
    let [first, last] = entry.data_offsets;
    if last < first || last > file_size - start {
        return Err(refuse(format!(
            "its data_offsets {first}..{last} do not fit the file's {} bytes of data: the file is \
             truncated or its header is wrong",
            file_size - start
        )));
    }
    if last - first != size {
        return Err(refuse(format!(
            "shape {:?} of {} is {size} bytes, the header gives it {}",
            entry.shape,
            entry.dtype,
            last - first
        )));
    }
    let shape = entry.shape.clone();
    Ok(TensorInfo { name, dtype, shape, shard, start: start + first, end: start + last })
}

/// Size of a tensor in bytes; `None` where it overflows `usize` or is not a whole number of bytes.
pub(super) fn byte_size(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))?;
    let bits = elements.checked_mul(dtype.bits())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Refuse a file unless every byte of its data belongs to exactly one tensor.
fn check_coverage(path: &Path, tensors: &[TensorInfo], start: usize, end: usize) -> Result<()> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_unstable_by_key(|tensor| (tensor.start, tensor.end));
    let mut covered = start;
    for tensor in order {
        if tensor.start < covered {
            return Err(Error::tensor(path, &tensor.name, "overlaps another tensor's data"));
        }
        if tensor.start > covered {
            let gap = tensor.start - covered;
            return Err(Error::tensor(
                path,
                &tensor.name,
                format!("{gap} bytes before it belong to no tensor"),
            ));
        }
        covered = tensor.end;
    }
    if covered != end {
        return Err(Error::file(
            path,
            format!("{} bytes at its end belong to no tensor", end - covered),
        ));
    }
    Ok(())
}
