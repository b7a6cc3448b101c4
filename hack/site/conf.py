"""Builds docs/, ARCHITECTURE.md, CONTRIBUTING.md and CHANGELOG.md as one static site: make docs.

The pages are plain Markdown that GitHub shows as well. So nothing in them is for Sphinx: the lists of docs/README.md
are the navigation, and a link to a file that is no page leads to the repository.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://github.com/slipway-run/slipway"
INDEX = "docs/README"

project = "Slipway"
copyright = "the authors of Slipway, Apache License 2.0"
extensions = ["myst_parser"]
root_doc = INDEX
include_patterns = ["docs/**.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "bin", "**/testdata", "docs/bench"]
highlight_language = "none"
suppress_warnings = ["misc.highlighting_failure"]  # Pygments does not know all of Terraform's syntax
myst_heading_anchors = 6
nitpicky = True
smartquotes = False  # it would turn --flag into a dash

html_theme = "furo"
html_title = "Slipway"
html_static_path = ["static"]
html_extra_path = ["index.html"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "",
}

ENTRY = re.compile(r"^( *)- \[([^]]+)\]\(([^)#]+)\.md\)", re.M)
CODE = re.compile(r'(?<=<span class="pre">)[^<]+')
TAG = re.compile(r"<[^>]*>")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def document(page, target):
    """Returns the path, below the root, of the file that a link leads to, or None if there is no such file."""
    path = (ROOT / page).parent.joinpath(target).resolve()
    return path.relative_to(ROOT).as_posix() if path.exists() and path.is_relative_to(ROOT) else None


def toctree(entries, caption=None):
    caption = f":caption: {caption}\n" if caption else ""
    lines = "".join(f"{text} </{page}>\n" for text, page in entries)
    return f"\n```{{toctree}}\n:hidden:\n{caption}\n{lines}```\n"


def navigation():
    """Returns the toctrees of each page, drawn from the lists of the index: a nested list belongs to the page above it."""
    trees = {INDEX: ""}
    for section in re.split(r"^## ", (ROOT / f"{INDEX}.md").read_text(), flags=re.M)[1:]:
        own, nested = [], {}
        for indent, text, target in ENTRY.findall(section):
            page = document(INDEX, target + ".md")
            if page is None:
                continue  # Sphinx reports the broken link itself
            entry = (text, page.removesuffix(".md"))
            if indent:
                nested.setdefault(own[-1][1], []).append(entry)
            else:
                own.append(entry)
        trees[INDEX] += toctree(own, section.splitlines()[0])
        for page, entries in nested.items():
            trees[page] = toctree(entries)
    return trees


def read(app, page, source):
    def repository(match):
        target, anchor = match.group(1), match.group(2) or ""
        path = None if "://" in target else document(page, target)
        if path is None or path.removesuffix(".md") in app.env.found_docs:
            return match.group(0)
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({REPOSITORY}/{kind}/main/{path}{anchor})"

    source[0] = LINK.sub(repository, source[0]) + TREES.get(page, "")


def label(table):
    """Writes the head of its column on each cell of a table with more than two, which site.css shows on narrow screens."""
    heads = [TAG.sub("", head).strip() for head in re.findall(r"<th[ >].*?</th>", table, re.S)]
    if len(heads) < 3:
        return table

    def row(match):
        names = iter(heads)
        return re.sub("<td", lambda _: f'<td data-label="{next(names)}"', match.group(0))

    return re.sub(r"<tr.*?</tr>", row, table, flags=re.S).replace('class="', 'class="cards ', 1)


def narrow(app, page, template, context, doctree):
    """Makes a page fit a narrow screen: long names in code may wrap after a punctuation mark, and wide tables become cards."""
    if "body" in context:
        body = CODE.sub(lambda m: re.sub(r"([._/,=])(?=\w)", r"\1<wbr>", m.group(0)), context["body"])
        context["body"] = re.sub(r"<table.*?</table>", lambda m: label(m.group(0)), body, flags=re.S)


TREES = navigation()


def setup(app):
    app.connect("html-page-context", narrow)
    app.connect("source-read", read)
