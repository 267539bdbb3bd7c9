//! Fields of a test's event as the cells that the host would make of them.

use super::{fail, good};
use crate::{Field, FieldType, Fields};
use serde_json::Value;
use tidemill_contract::cell::{MISSING_BOOLEAN, MISSING_INTEGER, Text};

#[derive(Clone, Debug)]
pub(super) enum Cell {
    Word(u64),
    Text(String),
}

#[track_caller]
pub(super) fn cells(declared: &[Field], unread: &[u32], fields: &Fields) -> Vec<Cell> {
    let json: Value = good(serde_json::from_str(&fields.to_json()));
    if let Some(extra) =
        json.as_object().and_then(|o| o.keys().find(|k| declared.iter().all(|f| f.name != *k)))
    {
        fail(&format!("the plugin declares no field `{extra}`, so it would not see it"));
    }
    let value = |n: usize, f: &Field| json.get(f.name).filter(|_| !unread.contains(&(n as u32)));
    declared.iter().enumerate().map(|(n, f)| cell(f, value(n, f).unwrap_or(&Value::Null))).collect()
}

#[track_caller]
fn cell(field: &Field, value: &Value) -> Cell {
    let missing = value.is_null() || value.as_str() == Some("");
    if missing && field.required {
        fail(&format!(
            "`{}` is required: the host would make a dead letter `missing_field` of this",
            field.name
        ));
    }
    let wrong = || -> Cell {
        fail(&format!("`{}` is {value}: the host would make a dead letter `wrong_type` of this", field.name))
    };
    let text = |t: &str| match field.symbols.iter().position(|s| *s == t) {
        Some(n) => Cell::Word(Text::Symbol(n as u32).word()),
        None => Cell::Text(t.into()),
    };
    match (field.field_type, value) {
        (FieldType::Text | FieldType::String, _) if missing => Cell::Word(Text::Missing.word()),
        (FieldType::Text | FieldType::String, Value::String(t)) => text(t),
        (FieldType::Text, Value::Number(_) | Value::Bool(_)) => text(&value.to_string()),
        (FieldType::Integer, _) if missing => Cell::Word(MISSING_INTEGER as u64),
        (FieldType::Integer, v) => v.as_i64().map_or_else(wrong, |n| Cell::Word(n as u64)),
        (FieldType::Number, _) if missing => Cell::Word(f64::NAN.to_bits()),
        (FieldType::Number, v) => v.as_f64().map_or_else(wrong, |n| Cell::Word(n.to_bits())),
        (FieldType::Boolean, _) if missing => Cell::Word(MISSING_BOOLEAN),
        (FieldType::Boolean, v) => v.as_bool().map_or_else(wrong, |b| Cell::Word(u64::from(b))),
        _ => wrong(),
    }
}

pub(super) fn put_cells(cells: &[Cell], words: &mut Vec<u64>, bytes: &mut Vec<u8>) {
    for c in cells {
        words.push(match c {
            Cell::Word(w) => *w,
            Cell::Text(t) => {
                let at = bytes.len() as u32;
                bytes.extend_from_slice(t.as_bytes());
                Text::Range { at, len: t.len() as u32 }.word()
            }
        });
    }
}
