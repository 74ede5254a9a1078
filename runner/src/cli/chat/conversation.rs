//! What was said, and the JSON file that keeps it.
//!
//! The file is an object whose `messages` are as an OpenAI-compatible server takes them; a bare array of messages is read,
//! too.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fastrun::chat::message;
use serde_json::{Value as Json, json};

/// Says whose file it is, so that no other is overwritten.
const FORMAT: &str = "fastinfer-chat";
const VERSION: u64 = 1;

/// A system prompt and the turns after it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    pub system: Option<String>,
    /// Messages of roles other than `system`, in order.
    turns: Vec<Json>,
}

impl Conversation {
    pub fn new(system: Option<String>) -> Conversation {
        Conversation {
            system,
            turns: Vec::new(),
        }
    }

    /// Forgets the turns.
    pub fn clear(&mut self) {
        self.turns.clear();
    }

    /// Keeps a turn.
    pub fn add(&mut self, question: &str, answer: &str) {
        self.turns.push(message("user", question));
        self.turns.push(message("assistant", answer));
    }

    pub fn messages(&self) -> Vec<Json> {
        let system = self.system.iter().map(|text| message("system", text));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// All messages and a question.
    pub fn messages_with(&self, question: &str) -> Vec<Json> {
        let mut messages = self.messages();
        messages.push(message("user", question));
        messages
    }

    /// Writes the conversation; over an earlier one, but over no other file. The error is for the user.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        let failed = |e: io::Error| format!("can't write {}: {e}", path.display());
        match fs::read(path) {
            Ok(bytes) if !is_ours(&bytes) => {
                return Err(format!(
                    "{} exists and was not written by /save; choose another name",
                    path.display()
                ));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        let file = json!({ "format": FORMAT, "version": VERSION, "messages": self.messages() });
        let text = format!("{file:#}\n");
        // All of it or nothing, should the disk be full.
        let part = part_name(path);
        fs::write(&part, text)
            .and_then(|()| fs::rename(&part, path))
            .map_err(|e| {
                // The error to tell is the first one.
                let _ = fs::remove_file(&part);
                failed(e)
            })
    }

    /// Reads a conversation. The error is for the user.
    pub fn load(path: &Path) -> Result<Conversation, String> {
        let bytes = fs::read(path).map_err(|e| format!("can't read {}: {e}", path.display()))?;
        parse(&bytes).map_err(|fault| {
            format!(
                "{} is no conversation: {fault}; give a file that /save wrote",
                path.display()
            )
        })
    }
}

impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.turns.len();
        write!(f, "{count} message{}", if count == 1 { "" } else { "s" })?;
        match self.system {
            Some(_) => write!(f, " and the system prompt"),
            None => Ok(()),
        }
    }
}

fn is_ours(bytes: &[u8]) -> bool {
    let file: Option<Json> = serde_json::from_slice(bytes).ok();
    file.is_some_and(|file| file["format"] == FORMAT)
}

/// A file beside `path`.
fn part_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    PathBuf::from(name)
}

fn parse(bytes: &[u8]) -> Result<Conversation, String> {
    let file: Json = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if let Some(version) = file.get("version").filter(|v| **v != VERSION) {
        return Err(format!(
            "it has version {version}, and this fastrun reads {VERSION}"
        ));
    }
    let messages = match &file {
        Json::Array(messages) => messages,
        _ => file["messages"]
            .as_array()
            .ok_or("it has no array of messages")?,
    };
    let mut conversation = Conversation::default();
    for (i, said) in messages.iter().enumerate() {
        let text = |name: &str| {
            said[name]
                .as_str()
                .ok_or_else(|| format!("message {i} has no {name} that is a string"))
        };
        match (text("role")?, text("content")?) {
            ("system", content) if i == 0 => conversation.system = Some(content.to_owned()),
            // Whatever else a message has, a template may read.
            ("user" | "assistant", _) => conversation.turns.push(said.clone()),
            (role, _) => {
                return Err(format!(
                    "message {i} has the role {role:?}, expected user or assistant (or system, as the first)"
                ));
            }
        }
    }
    Ok(conversation)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of this test's own.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("fastrun-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("the temporary folder is ours");
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn conversation() -> Conversation {
        let mut conversation = Conversation::new(Some("Be brief.".into()));
        conversation.add("Hi\nthere", "Hello \"you\" \u{1f600}");
        conversation
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = Folder::new("save");
        let path = folder.0.join("a chat.json");
        for conversation in [conversation(), Conversation::default(), conversation()] {
            conversation.save(&path).expect("the folder is writable");
            assert_eq!(Conversation::load(&path), Ok(conversation));
        }
        let files = fs::read_dir(&folder.0).expect("it is there").count();
        assert_eq!(files, 1, "nothing else is left");
    }

    #[test]
    fn no_other_file_is_overwritten() {
        let folder = Folder::new("other");
        for (name, text) in [
            ("notes", "my notes"),
            ("empty", ""),
            ("json", "{\"messages\": []}"),
        ] {
            let path = folder.0.join(name);
            fs::write(&path, text).expect("the folder is writable");
            let fault = conversation().save(&path).expect_err("it is not ours");
            assert!(fault.contains("choose another name"), "{fault}");
            assert_eq!(fs::read_to_string(&path).expect("it is there"), text);
        }
        let fault = conversation().save(&folder.0).expect_err("a folder");
        assert!(fault.contains("can't write"), "{fault}");
        let fault = conversation()
            .save(&folder.0.join("no/such"))
            .expect_err("no folder");
        assert!(fault.contains("no/such"), "{fault}");
    }

    #[test]
    fn messages_of_others_are_read() {
        let text =
            r#"[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]"#;
        let mut expected = Conversation::default();
        expected.add("Hi", "Hello");
        assert_eq!(parse(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn faults_are_named() {
        for (text, what) in [
            ("{", "EOF"),
            ("{}", "no array of messages"),
            (r#"{"version": 2, "messages": []}"#, "version 2"),
            (r#"[{"role": "user"}]"#, "message 0 has no content"),
            (
                r#"[{"role": "user", "content": []}]"#,
                "content that is a string",
            ),
            (
                r#"[{"role": "user", "content": ""}, {"role": "system", "content": ""}]"#,
                "message 1",
            ),
            (r#"[{"role": "tool", "content": ""}]"#, "\"tool\""),
            ("7", "no array"),
        ] {
            let fault = parse(text.as_bytes()).expect_err(text);
            assert!(fault.contains(what), "{text}: {fault}");
        }
    }

    #[test]
    fn the_system_prompt_comes_first_and_survives_a_reset() {
        let mut conversation = conversation();
        assert_eq!(conversation.to_string(), "2 messages and the system prompt");
        assert_eq!(conversation.messages_with("?")[0]["role"], "system");
        assert_eq!(conversation.messages_with("?").len(), 4);
        conversation.clear();
        assert_eq!(conversation.messages(), [message("system", "Be brief.")]);
    }
}
