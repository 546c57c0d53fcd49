// internal: emu's own state that belongs to threads.
#pragma once

namespace cudahost
{
void copies_reset();   // at a block's begin
bool copies_pending(); // of the running thread
} // namespace cudahost
