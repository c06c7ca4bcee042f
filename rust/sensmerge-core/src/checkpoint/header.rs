//! The header of one safetensors file: eight bytes of length, then a JSON object; the data follows.
//! Every field is checked before it is used.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};

use super::{TensorInfo, foreign};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Size in bytes of the length field at the start of a file.
pub(super) const LENGTH_BYTES: usize = 8;

/// The longest header accepted, in bytes. Those of real files, of 5 GB and 10,000 tensors at most, have
/// less than 2 MB; the format's own implementation accepts 100 MB.
const LONGEST_HEADER: usize = 25_000_000;

/// The most tensors of a file.
const MOST_TENSORS: usize = 100_000;

/// The most axes of a tensor: as many as NumPy knows.
const MOST_AXES: usize = 64;

/// The header's entry for one tensor.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Shape,
    data_offsets: [usize; 2],
}

/// A shape of at most [`MOST_AXES`] axes.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "a list of at most {MOST_AXES} sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> std::result::Result<Shape, A::Error> {
        let mut found = Vec::new();
        while let Some(size) = sizes.next_element()? {
            if found.len() == MOST_AXES {
                return Err(serde::de::Error::invalid_length(found.len() + 1, &self));
            }
            found.push(size);
        }
        Ok(Shape(found))
    }
}

/// A text that is checked and not kept.
struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        struct Texts;
        impl Visitor<'_> for Texts {
            type Value = Ignored;
            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("text")
            }
            fn visit_str<E: serde::de::Error>(self, _: &str) -> std::result::Result<Ignored, E> {
                Ok(Ignored)
            }
        }
        deserializer.deserialize_str(Texts)
    }
}

/// The file's own remarks, texts by name.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        struct Remarks;
        impl<'de> Visitor<'de> for Remarks {
            type Value = Metadata;
            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Metadata, A::Error> {
                while map.next_entry::<Ignored, Ignored>()?.is_some() {}
                Ok(Metadata)
            }
        }
        deserializer.deserialize_map(Remarks)
    }
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
            if seen.len() > MOST_TENSORS {
                let reason = format!("it holds more than {MOST_TENSORS} tensors");
                return Err(serde::de::Error::custom(reason));
            }
            if !seen.insert(name.clone()) {
                return Err(serde::de::Error::custom(format!("'{name}' occurs twice")));
            }
            if name == "__metadata__" {
                map.next_value::<Metadata>()?;
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
        let reason = format!(
            "the header claims {length} bytes, and at most {LONGEST_HEADER} are read: this is not a \
             safetensors file, or one of many small tensors, which are to be spread over several"
        );
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
    let size = byte_size(dtype, &entry.shape.0).ok_or_else(|| {
        refuse(format!(
            "shape {:?} of {} is not a whole number of bytes that fits in memory",
            entry.shape.0, entry.dtype
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
            entry.shape.0,
            entry.dtype,
            last - first
        )));
    }
    let shape = entry.shape.0.clone();
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
