// What transformers.js makes of the golden texts of bundles, as JSON: node transformers_js_answers.mjs BUNDLE...

import { readFileSync } from "node:fs";
import { emptyCache, load } from "./load_with_transformers_js.mjs";

const said = {};
for (const bundle of process.argv.slice(2)) {
  const { task, model, tokenizer } = await load(bundle);
  const texts = JSON.parse(readFileSync(`${bundle}/golden_texts.json`, "utf8"));
  const arrays = {};
  const written = [];
  for (const [number, text] of texts.entries()) {
    // Words cannot be given one by one.
    const encoded = tokenizer(Array.isArray(text) ? text.join(" ") : text, { truncation: true });
    const output = await model(task === "text-generation" ? { ...encoded, past_key_values: emptyCache(model) } : encoded);
    for (const name of ["input_ids", "attention_mask"]) {
      arrays[`${number}.in.${name}`] = encoded[name].tolist().map((row) => row.map(Number));
    }
    for (const name of ["sentence_embedding", "logits"]) {
      if (name in output) arrays[`${number}.out.${name}`] = output[name].tolist();
    }
    if (task === "text-generation") {
      const more = { max_new_tokens: 8, do_sample: false, past_key_values: emptyCache(model) };
      const ids = await model.generate({ ...encoded, ...more });
      written.push(tokenizer.decode(ids.tolist()[0], { skip_special_tokens: true }));
    }
  }
  said[task] = { arrays, written };
}
console.log(JSON.stringify(said));
