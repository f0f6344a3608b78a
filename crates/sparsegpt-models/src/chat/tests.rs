#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::*;

/// What transformers makes of templates and conversations (`scripts/chat-templates.py`).
const RENDERED: &str = include_str!("templates.json");

fn template(source: &str) -> Result<ChatTemplate> {
    let path = Path::new("folder/chat_template.jinja");
    ChatTemplate::new(path, source, BTreeMap::new())
}

fn render(source: &str) -> Result<String> {
    template(source)?.render(&[Message::new("user", "Hello")], true)
}

fn refused(source: &str, named: &str) {
    let error = render(source).unwrap_err();
    assert!(matches!(error, Error::ChatTemplate { .. }), "{error:?}");
    let error = error.to_string();
    assert!(
        error.starts_with("folder/chat_template.jinja: chat template: ") && error.contains(named),
        "{error}"
    );
}

#[test]
fn templates_give_what_transformers_renders() {
    let all: Json = serde_json::from_str(RENDERED).unwrap();
    let now = all["now"].as_str().unwrap().parse().unwrap();
    let tokens: BTreeMap<String, String> =
        serde_json::from_value(all["special_tokens"].clone()).unwrap();
    let text = |value: &Json| value.as_str().unwrap().to_owned();
    let (mut same, mut errors) = (0, 0);
    for case in all["cases"].as_array().unwrap() {
        let name = text(&case["template"]);
        let source = text(&all["templates"][&name]);
        let conversation = all["conversations"][text(&case["conversation"])].as_array();
        let messages: Vec<Message> = conversation
            .unwrap()
            .iter()
            .map(|message| Message::new(text(&message["role"]), text(&message["content"])))
            .collect();
        let template = ChatTemplate::new(Path::new("t"), &source, tokens.clone()).unwrap();
        let add_generation_prompt = case["add_generation_prompt"] == true;
        let found = template.render_at(&messages, add_generation_prompt, now);
        match (case["rendered"].as_str(), case["error"].as_str(), found) {
            (Some(expected), None, Ok(found)) => {
                assert_eq!(found, expected, "{name}: {case}");
                same += 1;
            }
            // The engine words its own errors; what the template says is told as it is.
            (None, Some(expected), Err(error)) => {
                let own = source.contains(&format!("raise_exception('{expected}')"));
                let error = error.to_string();
                assert_eq!(own, error.ends_with(expected), "{name}: {error}");
                assert_eq!(own, error.contains("conversation"), "{name}: {error}");
                errors += 1;
            }
            (_, _, found) => panic!("{name}: {found:?}, {case}"),
        }
    }
    assert!(same > 80 && errors > 20, "{same} {errors}");
}

#[test]
fn what_is_no_template_is_an_error_when_it_is_read() {
    for (source, named) in [
        ("{% if %}", "template:1"),
        ("{{ messages", "template:1"),
        ("a\n{% endfor %}", "template:2"),
        ("{% include 'other' %}", "include"),
        ("{{ 'a' | nofilter }}", "nofilter"),
    ] {
        let read = template(source);
        match read {
            Err(error) => assert!(error.to_string().contains(named), "{error}"),
            // Filters are looked up when they are called.
            Ok(_) => refused(source, named),
        }
    }
}

#[test]
fn errors_of_a_template_name_what_it_lacks() {
    refused("{{ raise_exception('no: é') }}", "conversation: no: é");
    refused("{{ messages[0].content.encode('utf-8') }}", "encode");
    refused("{{ nofunction() }}", "nofunction");
    refused("{{ strftime_now('%Q') }}", "%Q");
    refused("{{ messages | tojson(sort_keys=true) }}", "sort_keys");
    refused("{{ none.a.b }}", "");
}

/// Templates come with checkpoints that nobody vouches for.
#[test]
fn work_and_memory_of_a_template_are_bounded() {
    let forever =
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
    refused(forever, "steps");
    let doubled = "{% set ns = namespace(s='0123456789') %}{% for i in range(60) %}\
         {% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    refused(doubled, "steps");
    refused("{{ 'a' * 99999999999 }}", "");
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "");
    refused(&"{% if true %}".repeat(100_000), "");
    refused(&format!("{{{{ {} }}}}", "(".repeat(100_000)), "");
    refused("{{ messages | tojson(indent=99999999999) }}", "indent");
    // Small to hold, long to write.
    let shared = |end: &str| {
        format!(
            "{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}{{% set ns.x = [ns.x, ns.x] %}}\
             {{% endfor %}}{{{{ ns.x {end} }}}}"
        )
    };
    refused(&shared("| tojson"), "tojson");
    refused(&shared(""), "longer than");
    refused(&shared("| string"), "longer than");
    for width in [
        ":>100000000000",
        ":0100000d",
        ":.100000f",
        ":>10000000000000000000",
    ] {
        refused(&format!("{{{{ '{{{width}}}'.format(1) }}}}"), "digits");
    }
    assert_eq!(render("{{ '{:>4}'.format('a') }}").unwrap(), "   a");
    refused("{{ debug() }}", "debug");
    // As deep as the fuel allows.
    let deep = |rounds: usize, end: &str| {
        format!(
            "{{% set ns = namespace(x=[]) %}}{{% for j in range(99) %}}{{% for i in range({rounds}) %}}\
             {{% set ns.x = [ns.x] %}}{{% endfor %}}{{% endfor %}}{end}"
        )
    };
    refused(&deep(9999, ""), "steps");
    for end in ["{{ ns.x | string | length }}", "{{ ns.x == [ns.x] }}", ""] {
        render(&deep(150, end)).unwrap();
    }
    assert!(render(&deep(150, "{{ ns.x | tojson | length }}")).is_ok());
}

#[test]
fn a_template_that_does_not_end_is_given_up() {
    let (never, wait) = mpsc::channel::<()>();
    let template = template("{{ 1 }}").unwrap();
    let run = template.run_within(Duration::from_millis(1), move |_| {
        // Until the other end goes.
        let _ = wait.recv();
        Ok(())
    });
    let error = run.unwrap_err().to_string();
    assert!(error.contains("stopped after 1ms"), "{error}");
    drop(never);
}
