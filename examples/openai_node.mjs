// Uses the official SDK with nothing changed but the address, and prints the cosine similarity of each text with the first one.
// Install the SDK with `npm install openai`. BASE_URL defaults to http://localhost:5000/v1.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL ?? "http://localhost:5000/v1", apiKey: "unused" });
const input = ["The cat sleeps.", "고양이가 잠을 잔다.", "The bank raises interest rates."];
const { data } = await client.embeddings.create({ model: "text-embedding-3-small", input });
const [first] = data;
for (const { index, embedding } of data) {
  const cosine = embedding.reduce((sum, x, i) => sum + x * first.embedding[i], 0);
  console.log(cosine.toFixed(3).padStart(6), input[index]);
}
