/** How big a workflow may be before it is refused: every bound of this room, with its reason. */

/** Text of a workflow, unpacked. The largest official template is 0.2 MB; 64 MiB leaves room for pasted pictures. */
export const MAX_TEXT_BYTES = 64 * 2 ** 20;

/** Nesting of JSON. Real files stay under 20; recursive walkers and `JSON.stringify` overflow beyond some thousands. */
export const MAX_JSON_DEPTH = 200;

/** Objects and lists in a document given as an object; one that refers to itself twice would never end. */
export const MAX_JSON_OBJECTS = 5_000_000;

/** Nodes after flattening. Official templates stay under 400; the bound also stops subgraphs that multiply. */
export const MAX_NODES = 20_000;

/** Subgraphs inside subgraphs. Nobody nests by hand beyond 5. */
export const MAX_SUBGRAPH_DEPTH = 64;

/** Widgets that one node may unfold into: dynamic combos nest, and a definition comes from outside. */
export const MAX_WIDGETS_PER_NODE = 5000;

/** Names listed in one message; the rest is counted. All of them are in the error's details. */
export const MAX_NAMED_IN_MESSAGE = 8;

/** Wrappers around wrappers (`{"input": {"workflow": "…text…"}}`) that are opened before giving up. */
export const MAX_WRAPPERS = 6;

/** Prompts longer than this are passed on without looking for choices in them: nobody wrote them. */
export const MAX_PROMPT_LENGTH = 1_000_000;

/** Inputs of one node. Growing groups end at about a hundred; bypassed nodes are searched for a fitting one. */
export const MAX_INPUTS_PER_NODE = 1000;
