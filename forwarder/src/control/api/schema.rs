//! The JSON schema of the protocol, generated from its types. docs/api.schema.json is this schema; a test compares them.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::subscribe::Line;
use super::trace::Message;
use super::{API_VERSION, Envelope, Request, Response};

/// The schema (draft 2020-12): of one line on the socket. `$defs` has the kinds of lines by name: `RequestLine`, `ResponseLine`,
/// `SubscriptionLine`, `TraceLine`.
pub fn schema() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let lines = [
        generator.subschema_for::<Envelope<Request>>(),
        generator.subschema_for::<Envelope<Response>>(),
        generator.subschema_for::<Line>(),
        generator.subschema_for::<Message>(),
    ];
    let mut definitions: Map<String, Value> = generator.take_definitions(true);
    definitions.values_mut().for_each(simplify);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": format!("Control protocol of Ferroute, version {API_VERSION}"),
        "description": "One line on the control socket; see docs/API.md.",
        "anyOf": lines,
        "$defs": definitions,
    })
}

/// Removes from descriptions what only rustdoc understands: the brackets of links and their targets.
fn simplify(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = without_links(text);
            }
            fields.values_mut().for_each(simplify);
        }
        Value::Array(elements) => elements.iter_mut().for_each(simplify),
        _ => {}
    }
}

fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[`") {
        let Some((name, after)) = after.split_once("`]") else { break };
        let target = after.strip_prefix('(').and_then(|after| after.split_once(')'));
        plain.push_str(&format!("{before}`{name}`"));
        rest = target.map_or(after, |(_, after)| after);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_rustdoc_become_names() {
        assert_eq!(without_links("a [`B`](super::B), [`C::D`] [e]"), "a `B`, `C::D` [e]");
        assert_eq!(without_links("a [`B"), "a [`B");
    }

    #[test]
    fn the_document_is_the_schema_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.schema.json");
        let text = std::fs::read_to_string(path).expect("docs/api.schema.json");
        let written: Value = serde_json::from_str(&text).expect("JSON");
        assert!(
            written == schema(),
            "docs/api.schema.json is another schema: ferroute api schema > docs/api.schema.json"
        );
    }

    #[test]
    fn every_line_has_a_definition() {
        let schema = schema();
        for name in ["RequestLine", "ResponseLine", "SubscriptionLine", "TraceLine", "Event"] {
            assert!(schema["$defs"][name].is_object(), "{name}");
        }
        assert!(!schema.to_string().contains("[`"));
    }
}
