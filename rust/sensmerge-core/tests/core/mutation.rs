//! Sound JSON made unsound: a value somewhere in it is replaced, taken out, doubled or moved.

use proptest::prelude::*;
use serde_json::{Value, json};

/// A change: what is done, where, with which odd value, and under which odd name.
pub(crate) type Change = (u8, prop::sample::Index, prop::sample::Index, prop::sample::Index);

/// One to four changes.
pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(any::<Change>(), 1..5)
}

/// Values that people do not write.
fn odd() -> Vec<Value> {
    let numbers = [json!(0), json!(1), json!(2), json!(4), json!(8), json!(-1), json!(1.5)];
    let large = [json!(1_u64 << 31), json!(1_u64 << 62), json!(u64::MAX), json!(1e300)];
    let texts = ["", "a", "F32", "F4", "U8", "..", "part-0.safetensors", "a\u{0}b", "\u{1b}]0;x"];
    let others = [json!(null), json!(true), json!([]), json!({}), json!([0, 4]), json!({"a": 1})];
    let texts = texts.iter().map(|text| json!(text));
    numbers.into_iter().chain(large).chain(texts).chain(others).collect()
}

/// `value` with the changes made one after the other.
pub(crate) fn mutated(mut value: Value, changes: &[Change]) -> Value {
    for (kind, place, what, name) in changes {
        let mut places = Vec::new();
        collect(&value, "", &mut places);
        let pointer = places[place.index(places.len())].clone();
        let (odd, names) = (odd(), ["", "a", "__metadata__", "weight_map", "more"]);
        let (new, name) = (odd[what.index(odd.len())].clone(), names[name.index(names.len())]);
        let Some(found) = value.pointer_mut(&pointer) else { continue };
        match (kind % 4, &mut *found) {
            (1, Value::Object(map)) => drop(map.insert(name.to_owned(), new)),
            (2, Value::Object(map)) => {
                let key = map.keys().nth(what.index(map.len().max(1))).cloned();
                key.map(|key| map.remove(&key));
            }
            (1, Value::Array(list)) => list.push(new),
            (2, Value::Array(list)) => drop(list.pop()),
            (3, Value::Array(list)) => list.reverse(),
            (3, Value::Number(number)) => {
                let near = number.as_u64().map(|number| number.wrapping_add(1));
                *found = near.map_or(new, |near| json!(near));
            }
            (_, found) => *found = new,
        }
    }
    value
}

/// The pointers of all values in one.
fn collect(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, inner)| {
            let key = key.replace('~', "~0").replace('/', "~1");
            collect(inner, &format!("{at}/{key}"), found);
        }),
        Value::Array(list) => list.iter().enumerate().for_each(|(place, inner)| {
            collect(inner, &format!("{at}/{place}"), found);
        }),
        _ => {}
    }
}
