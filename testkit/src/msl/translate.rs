//! Turns preprocessed Metal source into C++ for the headers in `testkit/msl`.
//!
//! Metal is C++ with four additions, and each has its rule here: attributes in `[[…]]` (dropped; those of a
//! kernel's parameters become its bindings), kernels and their named instances (a table at the end of the
//! file), variables in threadgroup memory (static variables), and vectors that are made like objects
//! (`make<T>(…)`).

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use super::tokens::{Kind, Token, tokens};

/// The C++ source, or what cannot be translated.
pub(super) fn translate(preprocessed: &str) -> Result<String, String> {
    let all = tokens(preprocessed);
    let mut translation = Translation {
        made: made_types(&all),
        code: all
            .iter()
            .enumerate()
            .filter(|(_, token)| token.kind != Kind::Space)
            .map(|(at, _)| at)
            .collect(),
        tokens: all,
        output: String::from("#include \"metal.h\"\n"),
        definitions: HashMap::new(),
        kernels: Vec::new(),
    };
    translation.translate()?;
    translation.write_kernels();
    Ok(translation.output)
}

/// A kernel that can be launched.
struct Kernel {
    name: String,
    /// The C++ function, with template arguments.
    function: String,
    bindings: Vec<String>,
}

struct Translation<'source> {
    tokens: Vec<Token<'source>>,
    /// The tokens that are not white space.
    code: Vec<usize>,
    /// The types whose values are made with `make<T>(…)`.
    made: BTreeSet<&'source str>,
    output: String,
    /// The bindings of kernels by the name of their function, for the instances of templates.
    definitions: HashMap<&'source str, Vec<String>>,
    kernels: Vec<Kernel>,
}

/// What is known about the current statement or definition.
#[derive(Default)]
struct Statement {
    /// `template <…>` stands before it.
    is_template: bool,
    /// `template` stands before it, without parameters.
    is_instance: bool,
    /// The kernel's name for the host, as a literal.
    host_name: Option<String>,
}

impl<'source> Translation<'source> {
    fn translate(&mut self) -> Result<(), String> {
        let mut statement = Statement::default();
        let mut is_start = true;
        let mut written = 0;
        let mut at = 0;
        while at < self.code.len() {
            self.copy(&mut written, self.code[at]);
            let mut next = at + 1;
            let mut ends = false;
            match self.text(at) {
                "[" if self.is_attribute(at) => {
                    next = self.after(at)?;
                    if let Some(name) = self.host_name(at, next) {
                        statement.host_name = Some(name);
                    }
                    if self.attribute_words(at, next).contains(&"kernel") {
                        next = self.kernel(next, &statement)?;
                        ends = statement.is_instance;
                    }
                    self.skip(&mut written, next);
                }
                "kernel" => {
                    next = self.kernel(next, &statement)?;
                    ends = statement.is_instance;
                    self.skip(&mut written, next);
                }
                "template" if self.text(next) == "<" => {
                    statement.is_template = true;
                    next = self.after(next)?;
                }
                "template" if is_start && (self.is_attribute(next) || self.text(next) == "kernel") => {
                    statement.is_instance = true;
                    self.skip(&mut written, next);
                }
                "threadgroup" if is_start && self.is_variable(at) => {
                    self.check_threadgroup_variable(at)?;
                    self.output.push_str("MSL_THREADGROUP_VARIABLE");
                    written = self.code[at] + 1;
                }
                "static_cast" => {
                    self.output.push_str("make");
                    written = self.code[at] + 1;
                }
                "vec" if self.text(next) == "<" => {
                    let end = self.after(next)?;
                    if self.text(end) == "(" {
                        self.output.push_str("make<");
                        written = self.code[at];
                        self.copy(&mut written, self.code[end]);
                        self.output.push('>');
                        next = end;
                    }
                }
                // `float2 (&name)[4]` declares a reference to an array.
                word if self.made.contains(word)
                    && self.text(next) == "("
                    && self.text(next + 1) != "&"
                    && !self.is_member(at) =>
                {
                    write!(self.output, "make<{word}>").expect("a String takes all text");
                    written = self.code[at] + 1;
                }
                "(" if self.is_vector_cast(at) => {
                    let (vector, cast) = (self.text(next), self.source(at, at + 6));
                    return Err(format!("write {vector}(…) for a conversion, here: {cast}"));
                }
                ";" | "{" | "}" => ends = true,
                _ => {}
            }
            is_start = ends;
            if ends {
                statement = Statement::default();
            }
            at = next;
        }
        self.copy(&mut written, self.tokens.len());
        Ok(())
    }

    /// Copies the tokens up to `end`.
    fn copy(&mut self, written: &mut usize, end: usize) {
        while *written < end {
            self.output.push_str(self.tokens[*written].text);
            *written += 1;
        }
    }

    /// Leaves out the code before place `end`, but not its lines.
    fn skip(&mut self, written: &mut usize, end: usize) {
        let end = self.code.get(end).copied().unwrap_or(self.tokens.len());
        for token in &self.tokens[*written..end] {
            if token.kind == Kind::Space {
                self.output.push_str(token.text);
            }
        }
        *written = end;
    }

    /// The text of a code token; empty behind the last.
    fn text(&self, at: usize) -> &'source str {
        self.code.get(at).map_or("", |&at| self.tokens[at].text)
    }

    /// The code between two places, in one line.
    fn source(&self, start: usize, end: usize) -> String {
        (start..end).map(|at| self.text(at)).collect::<Vec<_>>().join(" ")
    }

    /// The place behind the bracket that closes the one at `start`.
    fn after(&self, start: usize) -> Result<usize, String> {
        let (open, close) = match self.text(start) {
            "(" => ("(", ")"),
            "[" => ("[", "]"),
            "<" => ("<", ">"),
            other => unreachable!("{other} opens nothing"),
        };
        let mut depth = 0;
        for at in start..self.code.len() {
            match self.text(at) {
                text if text == open => depth += 1,
                text if text == close => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Ok(at + 1);
            }
        }
        Err(format!("no {close} closes: {}", self.source(start, (start + 12).min(self.code.len()))))
    }

    /// Whether `[[` stands here.
    fn is_attribute(&self, at: usize) -> bool {
        self.text(at) == "[" && self.text(at + 1) == "[" && self.code[at + 1] == self.code[at] + 1
    }

    fn attribute_words(&self, start: usize, end: usize) -> Vec<&'source str> {
        (start..end).map(|at| self.text(at)).collect()
    }

    /// The name in `[[host_name("…")]]`, as a literal.
    fn host_name(&self, start: usize, end: usize) -> Option<String> {
        let at = (start..end).find(|&at| self.text(at) == "host_name")?;
        let end = self.after(at + 1).ok()?;
        Some((at + 2..end - 1).map(|at| self.text(at)).collect::<Vec<_>>().join(" "))
    }

    fn is_member(&self, at: usize) -> bool {
        at > 0 && (self.text(at - 1) == "." || (self.text(at - 1) == ">" && self.text(at - 2) == "-"))
    }

    /// Whether `(float4)` stands here as a cast: it would reinterpret the bits.
    fn is_vector_cast(&self, at: usize) -> bool {
        let vector = self.text(at + 1);
        let is_list =
            at > 0 && (self.tokens[self.code[at - 1]].kind == Kind::Word || self.text(at - 1) == ">");
        self.text(at + 2) == ")" && VECTORS[2..].contains(&vector) && !is_list
    }

    /// Whether `threadgroup` starts a variable that lies in threadgroup memory, and not a pointer to it.
    fn is_variable(&self, at: usize) -> bool {
        let end = (at..self.code.len()).find(|&at| [";", "="].contains(&self.text(at)));
        !(at..end.unwrap_or(self.code.len())).any(|at| ["*", "&", "("].contains(&self.text(at)))
    }

    fn check_threadgroup_variable(&self, at: usize) -> Result<(), String> {
        let end =
            (at..self.code.len()).find(|&at| [";", "="].contains(&self.text(at))).unwrap_or(self.code.len());
        if self.text(end) == "=" {
            return Err(format!(
                "a variable in threadgroup memory has no initial value: {}",
                self.source(at, end + 2)
            ));
        }
        Ok(())
    }

    /// Reads a kernel from behind `kernel` or its attribute. Returns where to go on: for a definition at its
    /// `void`, for an instance, of which nothing is left, behind it.
    fn kernel(&mut self, start: usize, statement: &Statement) -> Result<usize, String> {
        let mut at = start;
        let mut host_name = statement.host_name.clone();
        while self.is_attribute(at) {
            let end = self.after(at)?;
            host_name = self.host_name(at, end).or(host_name);
            at = end;
        }
        if statement.is_instance {
            return self.instance(at, host_name);
        }
        if self.text(at) != "void" || self.text(at + 2) != "(" {
            return Err(format!("a kernel is `void name(…)`, not: {}", self.source(at, at + 3)));
        }
        let name = self.text(at + 1);
        let end = self.after(at + 2)?;
        if self.text(end) != "{" {
            return Ok(at); // declared only
        }
        let bindings = self.bindings(name, at + 3, end - 1)?;
        if !statement.is_template {
            let host_name = host_name.unwrap_or_else(|| format!("\"{name}\""));
            self.kernels.push(Kernel { name: host_name, function: name.into(), bindings: bindings.clone() });
        }
        self.definitions.insert(name, bindings);
        Ok(at)
    }

    /// `void name<arguments>(…);` or `decltype(name<arguments>) name<arguments>;`
    fn instance(&mut self, start: usize, host_name: Option<String>) -> Result<usize, String> {
        let name_at = if self.text(start) == "decltype" { self.after(start + 1)? } else { start + 1 };
        let name = self.text(name_at);
        let instance = || self.source(start, (start + 12).min(self.code.len()));
        if self.text(name_at + 1) != "<" {
            return Err(format!("an instance of a kernel is `void name<…>(…);`, not: {}", instance()));
        }
        let end = self.after(name_at + 1)?;
        let function = self.source(name_at, end);
        let bindings =
            self.definitions.get(name).ok_or_else(|| format!("no kernel template is called {name}"))?;
        let name =
            host_name.ok_or_else(|| format!("an instance of a kernel needs a host_name: {}", instance()))?;
        self.kernels.push(Kernel { name, function, bindings: bindings.clone() });
        let end = (end..self.code.len()).find(|&at| self.text(at) == ";");
        end.map(|at| at + 1).ok_or_else(|| format!("no ; ends: {}", self.source(start, start + 12)))
    }

    /// What each parameter is bound to, as C++.
    fn bindings(&self, kernel: &str, start: usize, end: usize) -> Result<Vec<String>, String> {
        let parameters = self.parameters(start, end);
        let attributes: Vec<Option<(&str, &str)>> =
            parameters.iter().map(|&(start, end)| self.attribute(start, end)).collect();
        let taken: BTreeSet<&str> = attributes
            .iter()
            .flatten()
            .filter(|(name, _)| *name == "buffer")
            .map(|(_, index)| *index)
            .collect();
        let mut free =
            (0..).map(|index: usize| index.to_string()).filter(|index| !taken.contains(index.as_str()));
        let mut bindings = Vec::new();
        for (&(start, end), attribute) in parameters.iter().zip(&attributes) {
            let is_buffer = (start..end).any(|at| ["device", "constant"].contains(&self.text(at)));
            bindings.push(match attribute {
                Some(("buffer", index)) => format!("{{msl::Binding::buffer, {index}}}"),
                Some(("threadgroup", index)) => format!("{{msl::Binding::threadgroup_memory, {index}}}"),
                Some((name, _)) if BUILTINS.contains(name) => {
                    format!("{{msl::Binding::builtin, msl::{name}}}")
                }
                None if is_buffer => {
                    let index = free.next().expect("there is always a larger number");
                    format!("{{msl::Binding::buffer, {index}}}")
                }
                _ => {
                    let parameter = self.source(start, end);
                    return Err(format!("a parameter of kernel {kernel} that cannot be bound: {parameter}"));
                }
            });
        }
        Ok(bindings)
    }

    /// The places of the parameters between two brackets.
    fn parameters(&self, start: usize, end: usize) -> Vec<(usize, usize)> {
        let mut parameters = Vec::new();
        let (mut depth, mut first) = (0, start);
        for at in start..end {
            match self.text(at) {
                "(" | "<" | "[" | "{" => depth += 1,
                ")" | ">" | "]" | "}" => depth -= 1,
                "," if depth == 0 => {
                    parameters.push((first, at));
                    first = at + 1;
                }
                _ => {}
            }
        }
        if first < end {
            parameters.push((first, end));
        }
        parameters
    }

    /// The first attribute of a parameter: its name and what it has in brackets.
    fn attribute(&self, start: usize, end: usize) -> Option<(&'source str, &'source str)> {
        let at = (start..end).find(|&at| self.is_attribute(at))?;
        let argument = if self.text(at + 3) == "(" { self.text(at + 4) } else { "" };
        Some((self.text(at + 2), argument))
    }

    /// The table of kernels; for the check of address spaces, only what makes the compiler see all of them.
    fn write_kernels(&mut self) {
        self.output.push('\n');
        for (index, Kernel { name, function, bindings }) in self.kernels.iter().enumerate() {
            let bindings = bindings.join(", ");
            write!(
                self.output,
                "# 1 \"kernels\"\n\
                 #ifdef MSL_CHECK_ADDRESS_SPACES\n\
                 static auto *msl_kernel_{index} = &{function};\n\
                 #else\n\
                 static msl::Registered msl_kernel_{index}({name}, &{function}, {{{bindings}}});\n\
                 #endif\n"
            )
            .expect("a String takes all text");
        }
    }
}

const BUILTINS: [&str; 12] = [
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "threadgroup_position_in_grid",
    "threads_per_grid",
    "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup",
    "threadgroups_per_grid",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
    "threads_per_simdgroup",
];

const VECTORS: [&str; 35] = [
    "half", "bfloat", "float2", "float3", "float4", "half2", "half3", "half4", "bfloat2", "bfloat3",
    "bfloat4", "char2", "char3", "char4", "uchar2", "uchar3", "uchar4", "short2", "short3", "short4",
    "ushort2", "ushort3", "ushort4", "int2", "int3", "int4", "uint2", "uint3", "uint4", "long2", "long3",
    "long4", "ulong2", "ulong3", "ulong4",
];

/// Vectors and short floats, and all names that may stand for one: template parameters and aliases.
fn made_types<'source>(tokens: &[Token<'source>]) -> BTreeSet<&'source str> {
    let mut names: BTreeSet<&'source str> = VECTORS.into();
    let code: Vec<&Token<'source>> = tokens.iter().filter(|token| token.kind != Kind::Space).collect();
    let mut in_typedef = false;
    for (at, name) in code.iter().enumerate().skip(1).take(code.len().saturating_sub(2)) {
        let (before, after) = (code[at - 1], code[at + 1]);
        in_typedef = name.is("typedef") || (in_typedef && !before.is(";"));
        let is_parameter = (before.is("typename") || before.is("class"))
            && [",", ">", "="].iter().any(|mark| after.is(mark));
        let is_alias = (before.is("using") && after.is("=")) || (in_typedef && after.is(";"));
        if name.kind == Kind::Word && (is_parameter || is_alias) {
            names.insert(name.text);
        }
    }
    names
}
