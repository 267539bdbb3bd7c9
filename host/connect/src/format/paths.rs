//! Declared paths as a tree: what formats with nested values look for on their way through a record.
//!
//! A path is the name of a member, or a JSON pointer (RFC 6901) if it begins with `/`; an index of a pointer also names an
//! element of an array.

/// The most levels a JSON pointer may have. Each costs a stack frame, and in JSON a second scan of the value it enters.
pub const POINTER_LEVELS_MAX: usize = 100;

/// The place of one declared path, or a place on the way to one.
#[derive(Default, Debug)]
pub(super) struct Node {
    /// The slots that take the value standing here (a path may be wanted twice).
    pub(super) slots: Vec<usize>,
    /// Where the paths go on.
    pub(super) children: Vec<Child>,
    /// The slots of all nodes below: emptied when a later duplicate replaces the value.
    pub(super) below: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Child {
    /// The member's name.
    pub(super) name: String,
    /// The same token read as an array index; none for member names that are no index.
    pub(super) index: Option<usize>,
    /// In [`Paths::nodes`].
    pub(super) node: usize,
}

/// All declared paths as a trie; node 0 is the root. An arena, so that dropping it does not recurse.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) nodes: Vec<Node>,
}

impl Paths {
    pub(super) fn new(wanted: &[String]) -> Self {
        let mut paths = Self { nodes: vec![Node::default()] };
        for (slot, path) in wanted.iter().enumerate() {
            // A path that cannot be read names nothing; whoever checks the config reports it.
            let Ok(tokens) = tokens(path) else { continue };
            let mut node = 0;
            for token in tokens {
                paths.nodes[node].below.push(slot);
                node = paths.child(node, token);
            }
            paths.nodes[node].slots.push(slot);
        }
        paths
    }

    fn child(&mut self, node: usize, name: String) -> usize {
        if let Some(child) = self.nodes[node].children.iter().find(|c| c.name == name) {
            return child.node;
        }
        let new = self.nodes.len();
        let canonical = name == "0" || !name.starts_with('0');
        let digits = name.bytes().all(|b| b.is_ascii_digit());
        let index = if canonical && digits { name.parse().ok() } else { None };
        self.nodes[node].children.push(Child { name, index, node: new });
        self.nodes.push(Node::default());
        new
    }
}

/// The tokens of a path: itself if it is a member name, the unescaped parts if it is a JSON pointer (RFC 6901).
fn tokens(path: &str) -> Result<Vec<String>, String> {
    let Some(pointer) = path.strip_prefix('/') else { return Ok(vec![path.to_owned()]) };
    let mut tokens = Vec::new();
    for part in pointer.split('/') {
        if tokens.len() == POINTER_LEVELS_MAX {
            return Err(format!("a JSON pointer has at most {POINTER_LEVELS_MAX} levels"));
        }
        let mut token = String::with_capacity(part.len());
        let mut rest = part;
        while let Some(tilde) = rest.find('~') {
            token.push_str(&rest[..tilde]);
            token.push(match rest.as_bytes().get(tilde + 1) {
                Some(b'0') => '~',
                Some(b'1') => '/',
                _ => return Err("in a JSON pointer `~` is written ~0, and `/` in a name ~1".to_owned()),
            });
            rest = &rest[tilde + 2..];
        }
        token.push_str(rest);
        tokens.push(token);
    }
    Ok(tokens)
}

/// Whether a path is one that decoders can look for; the error says what is wrong with it.
pub fn check_path(path: &str) -> Result<(), String> {
    tokens(path).map(|_| ())
}
