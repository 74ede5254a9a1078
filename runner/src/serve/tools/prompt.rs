//! Messages as chat templates take them: texts as strings, arguments of calls as objects; and tools in the system prompt, where
//! the template has no place for them.

use serde_json::{Map, Value, json};

use super::super::error::ApiError;
use super::super::fields::expected;
use super::{CallFormat, Tools};

/// Checks a chat's messages, and writes them as templates read them.
pub fn messages(
    messages: Vec<Value>,
    format: &Result<CallFormat, String>,
) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages is empty"));
    }
    let of_template = matches!(format, Ok(format) if format.is_of_template());
    let mut out: Vec<Map<String, Value>> = Vec::with_capacity(messages.len());
    for (i, value) in messages.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let Value::Object(mut message) = value else {
            return Err(expected("an object", &path, &value));
        };
        normalise(&mut message, &path)?;
        match of_template {
            true => out.push(message),
            false => push_plain(&mut out, message),
        }
    }
    Ok(out.into_iter().map(Value::Object).collect())
}

/// Tells the model of its tools in the system message, and how to call them.
pub fn describe(messages: &mut Vec<Value>, tools: &Tools) {
    let mut text = String::from("You can call these functions:\n");
    for tool in tools.callable() {
        text += &format!("{}\n", tool.description["function"]);
    }
    text += "To call one, answer with nothing but a JSON object of its name and its arguments, such as \
             {\"name\": \"f\", \"arguments\": {\"x\": 1}}.";
    if tools.parallel {
        text += " Several calls are several such objects, each on a line of its own.";
    }
    match messages.first_mut().filter(|m| m["role"] == "system") {
        Some(system) => {
            let before = system["content"].as_str().unwrap_or_default();
            system["content"] = format!("{before}\n\n{text}").into();
        }
        None => messages.insert(0, json!({ "role": "system", "content": text })),
    }
}

fn normalise(message: &mut Map<String, Value>, path: &str) -> Result<(), ApiError> {
    match message.get("role").and_then(Value::as_str) {
        Some("system" | "user" | "assistant" | "tool") => {}
        Some("developer") => {
            message.insert("role".into(), "system".into());
        }
        Some(other) => {
            let what = "system, developer, user, assistant or tool";
            let message = format!("{path}.role is {other:?}, and must be {what}");
            return Err(ApiError::invalid(&format!("{path}.role"), message));
        }
        None => {
            let message = format!("{path}.role is missing");
            return Err(ApiError::invalid(&format!("{path}.role"), message));
        }
    }
    let calls = message.remove("tool_calls").filter(|v| !v.is_null());
    let content = message.remove("content").unwrap_or(Value::Null);
    let content_path = format!("{path}.content");
    if content.is_null() && calls.is_none() {
        return Err(ApiError::invalid(
            &content_path,
            format!("{content_path} is missing"),
        ));
    }
    message.insert("content".into(), text(content, &content_path)?.into());
    if let Some(calls) = calls {
        let path = format!("{path}.tool_calls");
        let Value::Array(calls) = calls else {
            return Err(expected("a list", &path, &calls));
        };
        let calls = calls
            .into_iter()
            .enumerate()
            .map(|(i, call)| with_object(call, &format!("{path}[{i}]")))
            .collect::<Result<Vec<_>, _>>()?;
        message.insert("tool_calls".into(), calls.into());
    }
    Ok(())
}

/// A content's text: a string, or parts of which all are texts.
fn text(content: Value, path: &str) -> Result<String, ApiError> {
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts
            .iter()
            .map(
                |part| match (part["type"].as_str(), part["text"].as_str()) {
                    (Some("text"), Some(text)) => Ok(text),
                    (Some(kind), _) => Err(ApiError::unsupported(
                        path,
                        format!("{path} has a part of type {kind:?}; this model reads text only"),
                    )),
                    (None, _) => Err(expected(
                        "a list of {\"type\": \"text\", \"text\": …}",
                        path,
                        part,
                    )),
                },
            )
            .collect(),
        other => Err(expected("a string or a list of parts", path, &other)),
    }
}

/// A call whose arguments are an object: clients send them as the JSON text that they got.
fn with_object(mut call: Value, path: &str) -> Result<Value, ApiError> {
    let wrong = |path: &str| {
        ApiError::invalid(
            path,
            format!("{path}.function must have a name, and arguments that are JSON"),
        )
    };
    let function = call.get_mut("function").and_then(Value::as_object_mut);
    let function = function.ok_or_else(|| wrong(path))?;
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(wrong(path));
    }
    if let Some(Value::String(text)) = function.get("arguments") {
        let arguments: Value = match text.trim() {
            "" => json!({}),
            text => serde_json::from_str(text).map_err(|_| wrong(path))?,
        };
        function.insert("arguments".into(), arguments);
    }
    Ok(call)
}

/// For templates that know no calls: calls become the assistant's text, their results the user's.
fn push_plain(out: &mut Vec<Map<String, Value>>, mut message: Map<String, Value>) {
    if let Some(Value::Array(calls)) = message.remove("tool_calls") {
        let calls = calls.iter().map(|call| {
            let function = &call["function"];
            json!({ "name": function["name"], "arguments": function["arguments"] }).to_string()
        });
        let before = message["content"].as_str().unwrap_or_default().to_owned();
        let lines: Vec<String> = Some(before)
            .into_iter()
            .filter(|b| !b.is_empty())
            .chain(calls)
            .collect();
        message.insert("content".into(), lines.join("\n").into());
    }
    if message["role"] == "tool" {
        let content = message["content"].as_str().unwrap_or_default();
        let result = format!("Result of the call: {content}");
        // Some templates insist that user and assistant take turns.
        if let Some(last) = out
            .last_mut()
            .filter(|last| last["role"] == "user" && last.contains_key(RESULT))
        {
            let before = last["content"].as_str().unwrap_or_default();
            last.insert("content".into(), format!("{before}\n{result}").into());
            return;
        }
        message = Map::new();
        message.insert("role".into(), "user".into());
        message.insert("content".into(), result.into());
        message.insert(RESULT.into(), true.into());
    }
    out.push(message);
}

/// Marks a user's message that is made of results; templates don't look at it.
const RESULT: &str = "is_result";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_become_text_and_arguments_objects() {
        let chat = vec![
            json!({ "role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}] }),
            json!({ "role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            ]}),
            json!({ "role": "tool", "tool_call_id": "1", "content": "two" }),
            json!({ "role": "tool", "tool_call_id": "2", "content": "three" }),
        ];
        let native = messages(chat.clone(), &Ok(CallFormat::Tagged)).expect("valid");
        assert_eq!(native[0]["role"], "system");
        assert_eq!(native[0]["content"], "Be brief.");
        assert_eq!(native[1]["tool_calls"][0]["function"]["arguments"]["x"], 1);
        assert_eq!(native.len(), 4);
        let plain = messages(chat, &Ok(CallFormat::Prompted)).expect("valid");
        assert_eq!(plain[1]["content"], r#"{"name":"f","arguments":{"x":1}}"#);
        assert_eq!(plain[2]["role"], "user");
        assert_eq!(
            plain[2]["content"],
            "Result of the call: two\nResult of the call: three"
        );
        assert_eq!(plain.len(), 3);
    }

    #[test]
    fn what_no_template_can_take_is_refused() {
        let fault = |message: Value| {
            let error = messages(vec![message], &Ok(CallFormat::Tagged)).expect_err("it is wrong");
            error.to_json()["error"]["param"].clone()
        };
        assert_eq!(
            fault(json!({ "role": "alien", "content": "x" })),
            "messages[0].role"
        );
        assert_eq!(fault(json!({ "role": "user" })), "messages[0].content");
        let image = json!({ "role": "user", "content": [{"type": "image_url", "image_url": {}}] });
        assert_eq!(fault(image), "messages[0].content");
        let call = json!({ "role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}] });
        assert_eq!(fault(call), "messages[0].tool_calls[0]");
    }
}
