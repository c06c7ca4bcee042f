//! A manifest of any text: refused, or written as text that is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sensmerge_core::manifest::Manifest;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(manifest) = Manifest::from_json(text) else { return };
    let written = manifest.to_json().expect("paths that were read are text");
    let again = Manifest::from_json(&written).expect("what was written is read");
    assert_eq!(written, again.to_json().expect("text"));
    assert!(manifest.specs().len() >= manifest.tensors.len());
});
