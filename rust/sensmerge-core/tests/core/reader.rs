//! Reading of checkpoints: valid ones are read, all others are refused with their path in the message.

use std::fs;
use std::path::Path;

use crate::files::{
    f32s, file, raw_file, safetensors, values, write_index, write_model, write_sharded,
};
use proptest::prelude::*;
use sensmerge_core::checkpoint::Checkpoint;
use sensmerge_core::error::Kind;
use serde_json::{Value, json};
use tempfile::tempdir;

fn refusal(path: &Path) -> String {
    Checkpoint::open(path).expect_err("refused").to_string()
}

/// The refusal of a folder whose only weight file holds these bytes.
fn refusal_of(bytes: &[u8]) -> String {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    let said = refusal(folder.path());
    assert!(said.contains("model.safetensors"), "names the file: {said}");
    said
}

fn entry(dtype: &str, shape: &Value, offsets: [u64; 2]) -> Value {
    json!({"dtype": dtype, "shape": shape, "data_offsets": offsets})
}

#[test]
fn one_file_and_several_hold_the_same_model() {
    let folder = tempdir().unwrap();
    let a = f32s("a", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let b = f32s("b", &[1], &[5.0]);
    let empty = f32s("empty", &[0, 7], &[]);
    let (one, many) = (folder.path().join("one"), folder.path().join("many"));
    write_model(&one, &[a.clone(), b.clone(), empty.clone()]);
    write_sharded(&many, &[vec![b], vec![empty, a]]);
    let (one, many) = (Checkpoint::open(&one).unwrap(), Checkpoint::open(&many).unwrap());
    assert_eq!(many.shard_paths().len(), 2);
    for name in ["a", "b", "empty"] {
        assert_eq!(values(&one, name), values(&many, name));
    }
    assert_eq!(one.fingerprint(), many.fingerprint());
    assert_eq!(one.get("a").unwrap().shape, [2, 2]);
    assert!(one.get("c").is_none());
}

#[test]
fn a_fingerprint_tells_models_apart() {
    let folder = tempdir().unwrap();
    let mut values = vec![1.0; 100_000];
    let mut fingerprint = |change: &mut dyn FnMut(&mut Vec<f32>)| {
        change(&mut values);
        write_model(folder.path(), &[f32s("a", &[100_000], &values)]);
        Checkpoint::open(folder.path()).unwrap().fingerprint()
    };
    let first = fingerprint(&mut |_| {});
    assert_eq!(first, fingerprint(&mut |_| {}));
    assert_ne!(first, fingerprint(&mut |values| values[0] = 2.0));
    let last = fingerprint(&mut |values| values[99_999] = 2.0);
    assert_ne!(first, last);
}

#[test]
fn headers_that_lie_are_refused() {
    let four = |offsets| file(&json!({"a": entry("F32", &json!([1]), offsets)}), &[0; 4]);
    assert!(Checkpoint::open(Path::new("/nowhere")).is_err());
    assert!(refusal_of(&[]).contains("truncated"));
    assert!(refusal_of(&[9, 0, 0]).contains("truncated"));
    assert!(refusal_of(&u64::MAX.to_le_bytes()).contains("claims"));
    assert!(refusal_of(&[200, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']).contains("truncated"));
    assert!(refusal_of(&raw_file(b"[]", &[])).contains("malformed"));
    assert!(refusal_of(&raw_file(b"{\"a\": 1}", &[])).contains("malformed"));
    assert!(refusal_of(&raw_file(b"\xff\xfe", &[])).contains("malformed"));
    assert!(refusal_of(&four([0, 8])).contains("'a'"));
    assert!(refusal_of(&four([4, 0])).contains("'a'"));
    assert!(
        refusal_of(&file(&json!({"a": entry("F32", &json!([2]), [0, 4])}), &[0; 4]))
            .contains("8 bytes")
    );
    assert!(
        refusal_of(&file(&json!({"a": entry("F99", &json!([1]), [0, 4])}), &[0; 4]))
            .contains("F99")
    );
    assert!(
        refusal_of(&file(&json!({"a": entry("F4", &json!([1]), [0, 1])}), &[0]))
            .contains("not a whole number of bytes")
    );
    assert!(
        refusal_of(&file(&json!({"": entry("U8", &json!([1]), [0, 1])}), &[0])).contains("no name")
    );
}

#[test]
fn sizes_that_overflow_are_refused() {
    for shape in [json!([u64::MAX, 2]), json!([1_u64 << 40, 1_u64 << 40]), json!([1_u64 << 62])] {
        let said = refusal_of(&file(&json!({"a": entry("F32", &shape, [0, 4])}), &[0; 4]));
        assert!(said.contains("not a whole number of bytes"), "{said}");
    }
    let negative = raw_file(br#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, &[0; 4]);
    assert!(refusal_of(&negative).contains("malformed"));
}

#[test]
fn every_byte_belongs_to_one_tensor() {
    let two = |first: [u64; 2], second: [u64; 2], data: usize| {
        let header = json!({"a": entry("U8", &json!([first[1] - first[0]]), first),
                            "b": entry("U8", &json!([second[1] - second[0]]), second)});
        refusal_of(&file(&header, &vec![0; data]))
    };
    assert!(two([0, 4], [2, 6], 6).contains("overlaps"));
    assert!(two([0, 4], [0, 4], 4).contains("overlaps"));
    assert!(two([0, 2], [4, 6], 6).contains("belong to no tensor"));
    assert!(two([1, 2], [2, 4], 4).contains("belong to no tensor"));
    assert!(two([0, 2], [2, 4], 9).contains("at its end"));
}

#[test]
fn duplicates_are_refused() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let twice = format!("{{\"a\":{entry},\"a\":{entry}}}");
    assert!(refusal_of(&raw_file(twice.as_bytes(), &[0])).contains("'a' occurs twice"));

    let folder = tempdir().unwrap();
    write_sharded(folder.path(), &[vec![f32s("a", &[1], &[1.0])], vec![f32s("b", &[1], &[1.0])]]);
    fs::copy(folder.path().join("part-0.safetensors"), folder.path().join("part-1.safetensors"))
        .unwrap();
    // The index names the second file for 'b' only, which it does not hold.
    assert!(refusal(folder.path()).contains("'b'"));
    fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    assert!(refusal(folder.path()).contains("part-0.safetensors, part-1.safetensors"));
    let index = r#"{"weight_map": {"a": "part-0.safetensors", "a": "part-0.safetensors"}}"#;
    write_index(folder.path(), index);
    assert!(refusal(folder.path()).contains("'a' occurs twice"));
}

#[test]
fn an_index_stays_in_its_folder_and_tells_the_truth() {
    let folder = tempdir().unwrap();
    let model = folder.path().join("model");
    write_sharded(&model, &[vec![f32s("a", &[1], &[1.0])]]);
    fs::write(folder.path().join("outside.safetensors"), safetensors(&[f32s("a", &[1], &[1.0])]))
        .unwrap();
    let absolute = folder.path().join("outside.safetensors");
    for name in
        ["../outside.safetensors", absolute.to_str().unwrap(), "..", ".", "", "a/b", "c:\\d"]
    {
        write_index(&model, &json!({"weight_map": {"a": name}}).to_string());
        assert!(refusal(&model).contains("not a file name in this folder"), "{name}");
    }
    write_index(&model, &json!({"weight_map": {"a": "missing.safetensors"}}).to_string());
    assert!(refusal(&model).contains("missing.safetensors"));
    write_index(&model, &json!({"weight_map": {"b": "part-0.safetensors"}}).to_string());
    assert!(refusal(&model).contains("'b'"));
    write_sharded(&model, &[vec![f32s("a", &[1], &[1.0]), f32s("b", &[1], &[1.0])]]);
    write_index(&model, &json!({"weight_map": {"a": "part-0.safetensors"}}).to_string());
    assert!(refusal(&model).contains("'b': is not in the index"));
    for text in ["", "{}", "[]", r#"{"weight_map": {}}"#, r#"{"weight_map": {"a": 1}}"#] {
        write_index(&model, text);
        assert!(refusal(&model).contains("index"));
    }
}

#[test]
fn only_regular_files_are_read() {
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("not a regular file"));
}

#[cfg(unix)]
#[test]
fn what_cannot_be_looked_at_is_not_taken_for_absent() {
    for name in ["model.safetensors", "config.json"] {
        let folder = tempdir().unwrap();
        write_sharded(folder.path(), &[vec![f32s("a", &[1], &[1.0])]]);
        let circle = folder.path().join(name);
        std::os::unix::fs::symlink(&circle, &circle).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// The values of the tensor `a` in a folder, and the notes on the folder.
fn a_and_notes(folder: &Path) -> (f32, String) {
    let checkpoint = Checkpoint::open(folder).unwrap();
    (values(&checkpoint, "a")[0], checkpoint.notes().join("\n"))
}

#[test]
fn one_file_goes_before_an_index_and_a_config_before_both() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let a = |value| vec![f32s("a", &[1], &[value])];
    write_sharded(path, &[a(1.0)]);
    assert_eq!(a_and_notes(path), (1.0, String::new()));
    fs::write(path.join("training_args.bin"), b"").unwrap();
    fs::write(path.join("pytorch_model.bin"), b"").unwrap();
    let (value, notes) = a_and_notes(path);
    assert_eq!(value, 1.0);
    assert!(notes.ends_with("passed over: pytorch_model.bin"), "{notes}");

    write_model(path, &a(2.0));
    let (value, notes) = a_and_notes(path);
    assert_eq!(value, 2.0);
    let over = "model.safetensors.index.json, part-0.safetensors, pytorch_model.bin";
    assert!(notes.contains("is read from model.safetensors, as transformers does"), "{notes}");
    assert!(notes.ends_with(&format!("passed over: {over}")), "{notes}");
    assert!(notes.starts_with(path.to_str().unwrap()), "{notes}");

    fs::write(path.join("other.safetensors"), safetensors(&a(3.0))).unwrap();
    let config = |text: &str| fs::write(path.join("config.json"), text).unwrap();
    config(r#"{"transformers_weights": "other.safetensors"}"#);
    let (value, notes) = a_and_notes(path);
    assert_eq!(value, 3.0);
    assert!(notes.contains("is read from other.safetensors, which config.json names"), "{notes}");
    config(r#"{"transformers_weights": "model.safetensors.index.json"}"#);
    assert_eq!(a_and_notes(path).0, 1.0);
    config(r#"{"transformers_weights": null, "time_step_limit": [0, 1]}"#);
    assert_eq!(a_and_notes(path).0, 2.0);
    // Python writes such numbers, which JSON does not have.
    config(r#"{"time_step_limit": [0, Infinity]}"#);
    assert_eq!(a_and_notes(path).0, 2.0);
    for text in [
        r#"{"transformers_weights": "../other.safetensors"}"#,
        r#"{"transformers_weights": "pytorch_model.bin"}"#,
        r#"{"transformers_weights": 3}"#,
        r#"{"transformers_weights": "#,
    ] {
        config(text);
        assert!(refusal(path).contains("config.json"), "{text}");
    }
    config(r#"{"transformers_weights": "missing.safetensors"}"#);
    assert!(refusal(path).contains("missing.safetensors"));
}

#[test]
fn of_a_tensor_in_two_files_the_index_decides() {
    let folder = tempdir().unwrap();
    let groups = |first, second| {
        let first = vec![f32s("a", &[1], &[first]), f32s("b", &[1], &[3.0])];
        write_sharded(
            folder.path(),
            &[first, vec![f32s("a", &[1], &[second]), f32s("c", &[0], &[])]],
        );
    };
    for chosen in ["part-0.safetensors", "part-1.safetensors"] {
        groups(1.0, 2.0);
        let map = json!({"a": chosen, "b": "part-0.safetensors", "c": "part-1.safetensors"});
        write_index(folder.path(), &json!({"weight_map": map}).to_string());
        let (value, notes) = a_and_notes(folder.path());
        assert_eq!(value, if chosen == "part-0.safetensors" { 1.0 } else { 2.0 });
        assert!(
            notes.contains("more than one file holds a; each is read from the file"),
            "{notes}"
        );
    }
    let map = json!({"b": "part-0.safetensors", "c": "part-1.safetensors"});
    write_index(folder.path(), &json!({"weight_map": map}).to_string());
    assert!(refusal(folder.path()).contains("'a': is in two files"));
}

#[test]
fn models_that_were_not_gathered_are_suspicious() {
    let folder = tempdir().unwrap();
    let suspicions = |tensors: &[crate::files::Tensor]| {
        write_model(folder.path(), tensors);
        Checkpoint::open(folder.path()).unwrap().suspicions()
    };
    let zero = f32s("zero", &[5000], &vec![0.0; 5000]);
    let mut values = vec![0.0; 5000];
    values[4999] = 1.0;
    let sound = f32s("sound", &[5000], &values);
    let mask = ("mask".to_owned(), "U8", vec![2], vec![1, 1]);
    assert!(suspicions(&[sound.clone(), zero.clone()]).is_empty());
    assert!(suspicions(&[]).is_empty());
    let said = suspicions(&[zero.clone(), mask.clone()]);
    assert_eq!(said.len(), 1);
    let cause = "it was probably saved from a sharded run without gathering its parts";
    assert!(said[0].ends_with(&format!(": every tensor is zero; {cause}")), "{said:?}");
    let said = suspicions(&[f32s("a.w", &[0, 4], &[]), f32s("b.w", &[0], &[]), sound, mask]);
    assert_eq!(said.len(), 1);
    let expected = format!(
        "model.safetensors: tensor 'a.w' is empty, of shape [0, 4], and so is 1 other; {cause}"
    );
    assert!(said[0].ends_with(&expected), "{said:?}");
}

#[test]
fn what_is_no_safetensors_model_is_refused_by_what_it_is() {
    let folder = tempdir().unwrap();
    let path = folder.path();
    let put = |name: &str, bytes: &[u8]| fs::write(path.join(name), bytes).unwrap();
    let says = |path: &Path, words: &[&str]| {
        let said = refusal(path);
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
        said
    };
    says(path, &["no safetensors"]);
    put("model.Q4_K_M.gguf", b"GGUF\x03\0\0\0\0\0\0\0");
    for gguf in [path, &path.join("model.Q4_K_M.gguf")] {
        assert!(!says(gguf, &["model.Q4_K_M.gguf", "llama.cpp", "convert"]).contains("pickle"));
    }
    put("pytorch_model.bin", b"PK\x03\x04\0\0\0\0\0\0\0\0");
    for pickle in [path, &path.join("pytorch_model.bin")] {
        says(pickle, &["pytorch_model.bin", "pickle can run code", "convert"]);
    }
    put("consolidated.safetensors", &safetensors(&[f32s("a", &[1], &[1.0])]));
    says(path, &["consolidated.safetensors", "its authors' own code", "name the file itself"]);
    assert!(Checkpoint::open(&path.join("consolidated.safetensors")).is_ok());
    fs::remove_file(path.join("consolidated.safetensors")).unwrap();
    put("a.safetensors", b"");
    put("b.safetensors", b"");
    says(path, &["several", "a.safetensors, b.safetensors", "name one"]);
    put("adapter_config.json", br#"{"base_model_name_or_path": "org/base"}"#);
    says(path, &["LoRA adapter for 'org/base'", "name it after the model", ": org/base+"]);
    put("adapter_config.json", br#"{"peft_type": "IA3"}"#);
    says(path, &["an adapter (IA3)", "merge_and_unload"]);
    put("adapter_model.safetensors", &safetensors(&[f32s("a", &[1], &[1.0])]));
    says(&path.join("adapter_model.safetensors"), &["an adapter (IA3)"]);
    assert!(Checkpoint::open_adapter(&path.join("adapter_model.safetensors")).is_ok());
    fs::remove_file(path.join("adapter_config.json")).unwrap();
    says(path, &["LoRA adapter"]);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    assert!(refusal_of(pointer).contains("git lfs pull"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let _ = Checkpoint::open(folder.path());
    }

    #[test]
    fn no_change_to_a_sound_file_makes_the_reader_panic(place in 0..150_usize, byte in any::<u8>()) {
        let mut bytes = safetensors(&[f32s("a", &[2, 1], &[1.0, 2.0]), f32s("b", &[1], &[3.0])]);
        let place = place % bytes.len();
        bytes[place] = byte;
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            for tensor in checkpoint.tensors() {
                prop_assert_eq!(checkpoint.bytes(tensor).len(), tensor.nbytes());
            }
        }
    }
}
