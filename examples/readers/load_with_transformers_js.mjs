// Opens a bundle of text with transformers.js, without this project.
//
// npm install @huggingface/transformers
// node examples/readers/load_with_transformers_js.mjs BUNDLE TEXT...

import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import {
  AutoModel,
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  AutoModelForTokenClassification,
  AutoTokenizer,
  DynamicCache,
  env,
  Tensor,
} from "@huggingface/transformers";

const CLASSES = {
  "sentence-embedding": AutoModel,
  "text-classification": AutoModelForSequenceClassification,
  "token-classification": AutoModelForTokenClassification,
  "text-generation": AutoModelForCausalLM,
};

// Task, model and tokenizer of a bundle.
export async function load(bundle) {
  const folder = resolve(bundle);
  env.allowRemoteModels = false;
  env.localModelPath = dirname(folder);
  const { task } = JSON.parse(readFileSync(`${folder}/manifest.json`, "utf8"));
  // A bundle has model.onnx at its root, whatever its precision; not onnx/model_quantized.onnx and others.
  const model = await CLASSES[task].from_pretrained(basename(folder), { subfolder: "", dtype: "fp32" });
  return { task, model, tokenizer: await AutoTokenizer.from_pretrained(basename(folder)) };
}

// Keys and values of no token yet. Without it transformers.js asks for as many rows as the dimension batch_size has, by
// that name; a bundle's is called batch.
export function emptyCache(model) {
  const past = model.sessions.model.inputMetadata.filter(({ name }) => name.startsWith("past_key_values."));
  const none = ([, heads, , width]) => new Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
  return new DynamicCache(Object.fromEntries(past.map(({ name, shape }) => [name, none(shape)])));
}

async function main(bundle, texts) {
  const { task, model, tokenizer } = await load(bundle);
  let first;
  for (const text of texts) {
    const encoded = tokenizer(text, { truncation: true });
    if (task === "text-generation") {
      const more = { max_new_tokens: 16, do_sample: false, past_key_values: emptyCache(model) };
      const ids = await model.generate({ ...encoded, ...more });
      console.log(tokenizer.decode(ids.tolist()[0]));
      continue;
    }
    const output = await model(encoded);
    if (task === "sentence-embedding") {
      const vector = output.sentence_embedding.tolist()[0];
      first ??= vector;
      console.log(`${vector.reduce((sum, x, i) => sum + x * first[i], 0).toFixed(3)}  ${text}`);
      continue;
    }
    const best = (logits) => model.config.id2label[logits.indexOf(Math.max(...logits))];
    const answer = output.logits.tolist()[0];
    if (task === "text-classification") {
      console.log(`${best(answer)}  ${text}`);
    } else {
      const tokens = encoded.input_ids.tolist()[0].map((id) => tokenizer.decode([id]));
      console.log(tokens.map((token, i) => `${token}/${best(answer[i])}`).join(" "));
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main(process.argv[2], process.argv.slice(3));
