// The page's modules, one call a line: {"module", "call", "arguments"} in, {"value"} or {"error"} out.
// Typed arrays travel as {"array": constructor, "base64": bytes}.
import { createInterface } from "node:readline";

const folder = new URL("../../apps/detector/web/", import.meta.url);

function decoded(key, value) {
  if (!value?.base64) return value;
  const bytes = Uint8Array.from(Buffer.from(value.base64, "base64"));
  return new globalThis[value.array](bytes.buffer);
}

function encoded(key, value) {
  if (!ArrayBuffer.isView(value)) return value;
  const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  return { array: value.constructor.name, base64: bytes.toString("base64") };
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const { module, call, arguments: given } = JSON.parse(line, decoded);
    answer = { value: (await import(new URL(module, folder)))[call](...given) };
  } catch (error) {
    answer = { error: String(error.message) };
  }
  console.log(JSON.stringify(answer, encoded));
}
