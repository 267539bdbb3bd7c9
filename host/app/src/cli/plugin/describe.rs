//! What a component says of itself, for programs. Scenarios write the same of the native plugin, so that the two can be
//! compared.

use serde_json::{Value, json};
use tidemill_sandbox::{Description, FieldType, MetricKind, StateForm};

/// The word for a type, as the contract has it.
pub(super) fn field_type(t: FieldType) -> &'static str {
    match t {
        FieldType::Text => "text",
        FieldType::String => "string",
        FieldType::Integer => "integer",
        FieldType::Number => "number",
        FieldType::Boolean => "boolean",
    }
}

/// All but name and version, which are the crate's.
pub(super) fn to_json(d: &Description) -> Value {
    let fields = d.fields.iter().map(|f| {
        json!({
            "name": f.name, "type": field_type(f.field_type), "required": f.required, "symbols": f.symbols,
        })
    });
    let metrics = d.metrics.iter().map(|m| {
        let buckets = match &m.kind {
            MetricKind::Counter => &[][..],
            MetricKind::Histogram(buckets) => buckets,
        };
        json!({ "name": m.name, "help": m.help, "buckets": buckets })
    });
    let form = |f: &StateForm| json!({ "version": f.version, "shape": f.shape });
    // The sandbox has read it as JSON before.
    let schema: Value = serde_json::from_str(&d.config_schema).unwrap_or_default();
    json!({
        "fields": fields.collect::<Vec<_>>(),
        "reasons": d.reasons,
        "timers": d.timers,
        "metrics": metrics.collect::<Vec<_>>(),
        "lookups": d.lookups,
        "config_schema": schema,
        "state": d.state.as_ref().map(|s| json!({
            "version": s.present.version, "shape": s.present.shape,
            "migrates_from": s.migrates_from.iter().map(form).collect::<Vec<_>>(),
        })),
    })
}
